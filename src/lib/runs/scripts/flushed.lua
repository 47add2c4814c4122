-- Outbox entries whose records were acknowledged are removed, for several runs at once.
--
-- A: runs = { { run, { n, … } }, … }

for _, pair in ipairs(A.runs) do
  local R = load_run(pair[1])
  if R then
    acknowledge(R, pair[2])
    save(R)
    if not R.f.stage and num(R, 'outbox_len') == 0 then
      redis.call('DEL', key('run', R.id)) -- its session was erased; only the outbox was left
    end
  end
end
return #A.runs
