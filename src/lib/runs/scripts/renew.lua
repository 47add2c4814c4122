-- A worker renews the leases of its runs and learns of cancellations.
--
-- A: lease_ms, runs = { { run, owner }, … }
-- Returns, in the same order: 'owned', 'graceful', 'force' or 'lost'.

local answers = {}
for i, pair in ipairs(A.runs) do
  local R = load_run(pair[1])
  if R and R.f.owner == pair[2] and not is_terminal(R) then
    set(R, 'lease', now + A.lease_ms)
    save(R)
    answers[i] = R.f.cancel or 'owned'
  else
    answers[i] = 'lost'
  end
end
return answers
