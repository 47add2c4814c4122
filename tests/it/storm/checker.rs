//! Whether a history is one that AgentHub promises. Pure, and independent of the product: it knows of it
//! what a client knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::history::{Call, History, Promise, Told};

/// What was looked at for one invariant, and what broke it.
#[derive(Debug)]
pub struct Checked {
    pub invariant: &'static str,
    /// How many things it was asked of.
    pub looked_at: usize,
    pub violations: Vec<String>,
}

/// The verdict.
#[derive(Debug)]
pub struct Verdict(pub Vec<Checked>);

impl Verdict {
    pub fn holds(&self) -> bool {
        self.0.iter().all(|checked| checked.violations.is_empty())
    }

    /// The invariants that are broken.
    pub fn broken(&self) -> Vec<&'static str> {
        let broken = self
            .0
            .iter()
            .filter(|checked| !checked.violations.is_empty());
        broken.map(|checked| checked.invariant).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Checked {
            invariant,
            looked_at,
            violations,
        } in &self.0
        {
            let verdict = if violations.is_empty() {
                "ok"
            } else {
                "BROKEN"
            };
            writeln!(
                f,
                "{verdict:<7}{invariant:<34}{looked_at:>8} looked at {:>6} violations",
                violations.len()
            )?;
        }
        let first = self
            .0
            .iter()
            .find_map(|c| Some((c.invariant, c.violations.first()?)));
        match first {
            None => writeln!(f, "VERDICT: every invariant holds"),
            Some((invariant, violation)) => {
                writeln!(f, "first violation, of {invariant}:\n{violation}")?;
                writeln!(f, "VERDICT: BROKEN: {}", self.broken().join(", "))
            }
        }
    }
}

/// What an invariant is asked with.
struct Asked<'a> {
    history: &'a History,
    /// Each event of the topic once, by session and id.
    sessions: BTreeMap<&'a str, Vec<&'a Told>>,
    /// The same, by run.
    runs: BTreeMap<&'a str, Vec<&'a Told>>,
    /// The calls, by `Idempotency-Key`.
    calls: BTreeMap<&'a str, Vec<&'a Call>>,
}

type Invariant = fn(&Asked<'_>) -> (usize, Vec<String>);

/// By name, in the order in which they are printed.
const INVARIANTS: [(&str, Invariant); 12] = [
    ("accepted_once", accepted_once),
    ("one_terminal_outcome", one_terminal_outcome),
    ("nothing_after_the_end", nothing_after_the_end),
    ("failures_are_explained", failures_are_explained),
    ("completed_steps_ran_once", completed_steps_ran_once),
    ("attempts_are_called_once", attempts_are_called_once),
    ("unsafe_steps_ran_once", unsafe_steps_ran_once),
    ("session_numbers", session_numbers),
    ("session_order", session_order),
    ("streams_are_exact", streams_are_exact),
    ("budgets_balance", budgets_balance),
    ("lag_is_zero", lag_is_zero),
];

pub fn check(history: &History) -> Verdict {
    let mut asked = Asked {
        history,
        sessions: BTreeMap::new(),
        runs: BTreeMap::new(),
        calls: BTreeMap::new(),
    };
    for event in &history.events {
        asked
            .sessions
            .entry(&event.session)
            .or_default()
            .push(event);
    }
    for events in asked.sessions.values_mut() {
        events.sort_by_key(|event| event.id);
        // A record may be produced more than once: then it says the same.
        events.dedup_by(|a, b| a == b);
        for event in events {
            asked.runs.entry(&event.run).or_default().push(event);
        }
    }
    for call in &history.calls {
        asked.calls.entry(&call.key).or_default().push(call);
    }
    let checked = INVARIANTS.iter().map(|(invariant, ask)| {
        let (looked_at, violations) = ask(&asked);
        Checked {
            invariant,
            looked_at,
            violations,
        }
    });
    Verdict(checked.collect())
}

/// Each submission has one run, however often it was repeated, and there is no run that nobody asked for.
fn accepted_once(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    let (mut accepted, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for submission in &asked.history.submissions {
        let named: BTreeSet<_> = submission.answers.iter().collect();
        if named.len() != 1 {
            broken.push(format!(
                "not one run for one Idempotency-Key: {submission:?}"
            ));
        }
        if !keys.insert(&submission.idempotency_key) {
            broken.push(format!("not one submission: {submission:?}"));
        }
        for run in &named {
            let events = asked.runs.get(run.as_str()).into_iter().flatten();
            let elsewhere = events.filter(|event| event.session != submission.session);
            broken.extend(
                elsewhere.map(|event| format!("{submission:?} has an event elsewhere: {event:#?}")),
            );
        }
        accepted.extend(named);
    }
    for run in asked.runs.keys() {
        if !accepted.iter().any(|known| known == run) {
            broken.push(format!(
                "{run} is on agent.events, and nobody was told of it"
            ));
        }
    }
    (asked.history.submissions.len(), broken)
}

/// Each accepted run has exactly one terminal event on the topic, and the API says the same.
fn one_terminal_outcome(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    let accepted: BTreeSet<_> = asked
        .history
        .submissions
        .iter()
        .flat_map(|submission| &submission.answers)
        .collect();
    for run in &accepted {
        let events = asked.runs.get(run.as_str()).map_or(&[][..], Vec::as_slice);
        let ends: Vec<_> = events.iter().filter(|event| event.is_terminal()).collect();
        let shown = asked.history.runs.get(*run);
        let agrees = |event: &Told| {
            shown.is_some_and(|run| event.kind.strip_prefix("run.") == Some(run.status.as_str()))
        };
        if ends.len() != 1 || !agrees(ends[0]) {
            broken.push(format!(
                "{run}: {} terminal events {ends:#?}, the API shows {shown:?}",
                ends.len()
            ));
        }
    }
    (accepted.len(), broken)
}

fn nothing_after_the_end(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    for (run, events) in &asked.runs {
        let end = events.iter().position(|event| event.is_terminal());
        if let Some(end) = end.filter(|end| end + 1 < events.len()) {
            broken.push(format!("{run}: after its end: {:#?}", &events[end..]));
        }
    }
    (asked.runs.len(), broken)
}

/// The storm's plans can fail for one reason only: the outcome of an `unsafe` call was lost.
fn failures_are_explained(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    for (id, run) in &asked.history.runs {
        let unknown = run.code.as_deref() == Some("outcome_unknown");
        let told = || {
            let mut events = asked.runs.get(id.as_str()).into_iter().flatten();
            events.any(|event| event.kind == "step.failed")
        };
        let explained = run.status == "succeeded" || run.status == "failed" && unknown && told();
        if !explained {
            broken.push(format!("{id}: {run:?}"));
        }
    }
    (asked.history.runs.len(), broken)
}

/// A step completes once; it was called for that, and is not called after it.
fn completed_steps_ran_once(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    let mut completed: BTreeMap<String, Vec<&Told>> = BTreeMap::new();
    let events = asked.runs.values().flatten();
    for event in events.filter(|event| event.kind == "step.completed") {
        let step = event.step.as_deref().unwrap_or_default();
        completed
            .entry(format!("{}/{step}", event.run))
            .or_default()
            .push(event);
    }
    for (key, ends) in &completed {
        if ends.len() > 1 {
            broken.push(format!("{key} completed {} times: {ends:#?}", ends.len()));
        }
        let calls = asked.calls.get(key.as_str()).into_iter().flatten();
        let late: Vec<_> = calls.filter(|call| call.arrived_ms > ends[0].ts).collect();
        if !late.is_empty() {
            broken.push(format!(
                "{key} was called after it had completed: {:#?} {late:#?}",
                ends[0]
            ));
        }
    }
    (completed.len(), broken)
}

/// No attempt reaches the tool twice, and none that was not declared reaches it.
fn attempts_are_called_once(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    let mut declared = BTreeSet::new();
    let events = asked.runs.values().flatten();
    for event in events.filter(|event| event.kind == "step.started") {
        let step = event.step.as_deref().unwrap_or_default();
        declared.insert((format!("{}/{step}", event.run), event.attempt.unwrap_or(0)));
    }
    let mut seen = BTreeSet::new();
    for call in &asked.history.calls {
        let attempt = (call.key.clone(), call.attempt);
        if !declared.contains(&attempt) {
            broken.push(format!("no step.started tells of it: {call:#?}"));
        }
        if !seen.insert(attempt) {
            broken.push(format!(
                "called twice: {:#?}",
                asked.calls[call.key.as_str()]
            ));
        }
    }
    (seen.len(), broken)
}

fn unsafe_steps_ran_once(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let is_unsafe = |calls: &&Vec<&Call>| calls.iter().any(|call| call.promise == Promise::Unsafe);
    let steps: Vec<_> = asked.calls.values().filter(is_unsafe).collect();
    let twice = steps.iter().filter(|calls| calls.len() > 1);
    let broken = twice.map(|calls| format!("{} calls: {calls:#?}", calls.len()));
    (steps.len(), broken.collect())
}

/// The events of a session are numbered from 1 without a gap, and each names the one before it.
fn session_numbers(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    for (session, events) in &asked.sessions {
        let mut before: Option<&Told> = None;
        for event in events {
            let expected = before.map_or(1, |before| before.id.seq + 1);
            if event.id.seq != expected || event.prev != before.map(|before| before.id) {
                broken.push(format!("{session}: {before:#?} is followed by {event:#?}"));
                break;
            }
            before = Some(event);
        }
    }
    (asked.sessions.len(), broken)
}

/// The runs of a session come one after the other, in the order in which they were queued.
fn session_order(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    for (session, events) in &asked.sessions {
        let mut queued = events.iter().filter(|event| event.kind == "run.queued");
        let mut current: Option<&str> = None;
        for event in events.iter().filter(|event| event.kind != "run.queued") {
            if current.is_none() {
                current = queued.next().map(|event| event.run.as_str());
            }
            if current != Some(event.run.as_str()) {
                broken.push(format!(
                    "{session}: it is the turn of {current:?}, and not of {event:#?}"
                ));
                break;
            }
            if event.is_terminal() {
                current = None;
            }
        }
    }
    (asked.sessions.len(), broken)
}

/// Whoever followed a session's stream and reconnected was told what the topic has, each event once.
fn streams_are_exact(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let mut broken = Vec::new();
    for (session, told) in &asked.history.streams {
        let events = asked
            .sessions
            .get(session.as_str())
            .map_or(&[][..], Vec::as_slice);
        let differs =
            (0..told.len().max(events.len())).find(|n| told.get(*n) != events.get(*n).copied());
        if let Some(n) = differs {
            broken.push(format!(
                "{session}: event {n} of the topic is {:#?}, and the stream told {:#?}",
                events.get(n),
                told.get(n)
            ));
        }
    }
    (asked.history.streams.len(), broken)
}

/// What the API says was spent is what `audit.logs` says call by call, and nothing is held any more.
fn budgets_balance(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let history = asked.history;
    let settled: BTreeMap<_, _> = history.settlements.iter().map(|s| (&s.id, s)).collect();
    let on_topic: i64 = settled.values().map(|s| s.delta_micro_usd).sum();
    let of_runs: u64 = history.runs.values().map(|run| run.cost_micro_usd).sum();
    let money = history.money;
    let sums = [
        money.used,
        of_runs,
        u64::try_from(on_topic).unwrap_or(u64::MAX),
    ];
    let mut broken = Vec::new();
    if sums.iter().any(|sum| *sum != money.spent) || money.reserved != 0 {
        broken.push(format!(
            "{money:?}; audit.logs: {on_topic}; the runs: {of_runs}"
        ));
    }
    if money.spent > money.limit {
        broken.push(format!("more than the limit: {money:?}"));
    }
    for (run, shown) in &history.runs {
        let own = settled.values().filter(|s| s.run == *run);
        let own: Vec<_> = own.collect();
        let sum: i64 = own.iter().map(|s| s.delta_micro_usd).sum();
        if u64::try_from(sum) != Ok(shown.cost_micro_usd) {
            broken.push(format!("{run}: {shown:?}, and on audit.logs {own:#?}"));
        }
    }
    (settled.len(), broken)
}

fn lag_is_zero(asked: &Asked<'_>) -> (usize, Vec<String>) {
    let behind = asked.history.lag.iter().filter(|(_, lag)| **lag != 0);
    let broken = behind.map(|(group, lag)| format!("{group} is {lag} records behind"));
    (asked.history.lag.len(), broken.collect())
}

#[cfg(test)]
mod tests {
    use super::super::history::{Money, Run, Settlement, Submission};
    use super::*;

    fn told(seq: u64, kind: &str, run: &str, step: Option<&str>) -> Told {
        let id = |seq: u64| format!("1-{seq}").parse().unwrap();
        Told {
            session: "s".into(),
            id: id(seq),
            prev: (seq > 1).then(|| id(seq - 1)),
            kind: kind.into(),
            run: run.into(),
            step: step.map(str::to_owned),
            attempt: step.map(|_| 1),
            ts: 1000 * seq,
        }
    }

    /// Two runs of a session: each calls a tool once.
    fn sound() -> History {
        let events = vec![
            told(1, "run.queued", "a", None),
            told(2, "step.started", "a", Some("x")),
            told(3, "run.queued", "b", None),
            told(4, "step.completed", "a", Some("x")),
            told(5, "run.succeeded", "a", None),
            told(6, "step.started", "b", Some("x")),
            told(7, "step.completed", "b", Some("x")),
            told(8, "run.succeeded", "b", None),
        ];
        let call = |key: &str, arrived_ms, promise| Call {
            promise,
            key: key.into(),
            attempt: 1,
            worker: "w".into(),
            arrived_ms,
            status: Some(200),
        };
        let run = |cost_micro_usd| Run {
            status: "succeeded".into(),
            code: None,
            cost_micro_usd,
        };
        let submission = |run: &str| Submission {
            idempotency_key: run.into(),
            answers: vec![run.into(), run.into()],
            session: "s".into(),
        };
        let settlement = |id: &str, run: &str, delta_micro_usd| Settlement {
            id: id.into(),
            run: run.into(),
            delta_micro_usd,
        };
        History {
            submissions: vec![submission("a"), submission("b")],
            streams: [("s".into(), events.clone())].into(),
            // The first record was produced twice.
            events: [&events[..1], &events].concat(),
            settlements: vec![
                settlement("1", "a", 9),
                settlement("2", "a", -2),
                settlement("1", "a", 9),
                settlement("3", "b", 1),
            ],
            runs: [("a".into(), run(7)), ("b".into(), run(1))].into(),
            calls: vec![
                call("a/x", 2500, Promise::Idempotent),
                call("b/x", 6500, Promise::Unsafe),
            ],
            money: Money {
                limit: 100,
                spent: 8,
                reserved: 0,
                used: 8,
            },
            lag: [("executor".into(), 0)].into(),
        }
    }

    #[test]
    fn a_sound_history_holds() {
        let verdict = check(&sound());
        assert!(verdict.holds(), "{verdict}");
        assert!(
            verdict.0.iter().all(|checked| checked.looked_at > 0),
            "{verdict}"
        );
        assert!(
            verdict
                .to_string()
                .ends_with("VERDICT: every invariant holds\n")
        );
    }

    #[test]
    fn each_invariant_finds_what_breaks_it_and_the_first_violation_is_told_in_full() {
        let cases: [(&[&str], fn(&mut History)); 21] = [
            (&["accepted_once"], |h| {
                h.submissions[0].answers.push("b".into());
            }),
            (&["accepted_once"], |h| _ = h.submissions.remove(1)),
            (&["accepted_once"], |h| {
                h.submissions[1].session = "t".into();
            }),
            (&["one_terminal_outcome", "failures_are_explained"], |h| {
                h.runs.get_mut("a").unwrap().status = "cancelled".into();
            }),
            (&["one_terminal_outcome", "budgets_balance"], |h| {
                _ = h.runs.remove("a");
            }),
            (&["one_terminal_outcome", "streams_are_exact"], |h| {
                _ = h.events.pop();
            }),
            (
                &[
                    "one_terminal_outcome",
                    "nothing_after_the_end",
                    "session_order",
                    "streams_are_exact",
                ],
                |h| {
                    h.events.push(told(9, "run.failed", "a", None));
                },
            ),
            (&["nothing_after_the_end", "session_order"], |h| {
                h.events.push(told(9, "step.progress", "b", None));
                h.streams
                    .get_mut("s")
                    .unwrap()
                    .push(told(9, "step.progress", "b", None));
            }),
            (
                &[
                    "completed_steps_ran_once",
                    "nothing_after_the_end",
                    "session_order",
                ],
                |h| {
                    h.events.push(told(9, "step.completed", "b", Some("x")));
                    h.streams
                        .get_mut("s")
                        .unwrap()
                        .push(told(9, "step.completed", "b", Some("x")));
                },
            ),
            (&["completed_steps_ran_once"], |h| {
                h.calls[0].arrived_ms = 4001;
            }),
            (&["attempts_are_called_once"], |h| {
                h.calls.push(h.calls[0].clone());
            }),
            (&["attempts_are_called_once"], |h| h.calls[0].attempt = 2),
            (
                &["attempts_are_called_once", "unsafe_steps_ran_once"],
                |h| h.calls.push(h.calls[1].clone()),
            ),
            (&["session_numbers", "streams_are_exact"], |h| {
                _ = h.events.remove(4);
            }),
            (&["session_numbers", "streams_are_exact"], |h| {
                h.events[3].prev = None;
            }),
            (&["streams_are_exact"], |h| {
                _ = h.streams.get_mut("s").unwrap().remove(2);
            }),
            (&["streams_are_exact"], |h| {
                let stream = h.streams.get_mut("s").unwrap();
                stream.insert(1, stream[1].clone());
            }),
            (&["streams_are_exact"], |h| {
                h.streams.get_mut("s").unwrap().swap(1, 2);
            }),
            (&["budgets_balance"], |h| _ = h.settlements.pop()),
            (&["budgets_balance"], |h| h.money.reserved = 1),
            (&["lag_is_zero"], |h| _ = h.lag.insert("planner".into(), 3)),
        ];
        for (n, (expected, damage)) in cases.into_iter().enumerate() {
            let mut history = sound();
            damage(&mut history);
            let verdict = check(&history);
            let expected: BTreeSet<_> = expected.iter().copied().collect();
            let broken: BTreeSet<_> = verdict.broken().into_iter().collect();
            assert_eq!(broken, expected, "case {n}: {verdict}");
            let first = verdict
                .0
                .iter()
                .find_map(|checked| checked.violations.first());
            assert!(verdict.to_string().contains(first.unwrap()), "{verdict}");
        }
    }

    #[test]
    fn runs_of_a_session_that_overlap_or_overtake_each_other_are_found() {
        let mut history = sound();
        for event in &mut history.events {
            let other = if event.run == "a" { "b" } else { "a" };
            if event.kind != "run.queued" {
                event.run = other.into();
            }
        }
        let verdict = check(&history);
        assert!(verdict.broken().contains(&"session_order"), "{verdict}");
    }

    #[test]
    fn only_a_lost_outcome_explains_a_failure() {
        let mut history = sound();
        history.runs.get_mut("a").unwrap().status = "failed".into();
        history.runs.get_mut("a").unwrap().code = Some("outcome_unknown".into());
        assert!(check(&history).broken().contains(&"failures_are_explained"));
        for event in history.events.iter_mut().filter(|event| event.run == "a") {
            match event.kind.as_str() {
                "step.completed" => event.kind = "step.failed".into(),
                "run.succeeded" => event.kind = "run.failed".into(),
                _ => {}
            }
        }
        history.streams.clear();
        assert!(check(&history).holds(), "{}", check(&history));
    }
}
