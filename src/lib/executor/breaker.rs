//! When calls to something that keeps failing are held back. Pure: the caller brings the time, and
//! says what workers elsewhere have found out.
//!
//! Closed, calls pass. When they fail too often in a row, or too large a share of those of a sliding
//! window does, the breaker opens: nothing passes for a while, and each time that it opens again that
//! while doubles. Afterwards it is half-open: a few probes pass at once; as many successes close it,
//! one failure opens it again.

use std::time::Duration;

/// Parts of the sliding window: it moves on by one of them at a time.
const PARTS: u8 = 10;
/// When to ask again while every probe is under way.
pub const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Longest time for which a breaker opens.
pub const LONGEST_OPEN: Duration = Duration::from_mins(5);

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Failures in a row that open it.
    pub consecutive: u32,
    /// Length of the sliding window.
    pub window: Duration,
    /// Calls that the window must hold before their share of failures counts.
    pub min_calls: u32,
    /// Per cent of failures in the window that open it.
    pub failure_percent: u32,
    /// How long it opens for the first time.
    pub open: Duration,
    /// Probes that pass at once when it is half-open, and successes that close it.
    pub probes: u32,
}

/// Leave to make one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// Which span between two changes it belongs to: what comes back late says nothing of the next.
    span: u64,
    /// Whether it is one of the few of a half-open breaker.
    pub probe: bool,
}

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may; its outcome is to be reported.
    Pass(Pass),
    /// Not before this time has passed.
    Wait(Duration),
}

/// What a call says of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Success,
    /// It does not.
    Failure,
    /// Nothing: the call was refused by a rule, dropped, or never made.
    Nothing,
}

/// What a breaker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Calls pass.
    Closed,
    /// No call passes.
    Open,
    /// Probes pass.
    HalfOpen,
}

/// A change of phase, to be told and shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It opened.
    Opened {
        /// For how long.
        lasts: Duration,
        /// Times in a row that it did.
        trips: u32,
    },
    /// Its time is over: probes pass.
    HalfOpened,
    /// It closed.
    Closed,
}

/// What workers elsewhere have found out and shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Time until probes pass; nothing when they do already.
    pub remaining: Duration,
    /// Times in a row that it opened.
    pub trips: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until_ms: u64 },
    HalfOpen { probing: u32, successes: u32 },
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    /// Number of the part since the epoch.
    number: u64,
    calls: u32,
    failures: u32,
}

/// A breaker. Times are milliseconds of any one clock.
#[derive(Debug, Clone)]
pub struct Breaker {
    rules: Rules,
    state: State,
    span: u64,
    trips: u32,
    in_a_row: u32,
    parts: [Part; PARTS as usize],
}

impl Breaker {
    /// A closed breaker that has seen no call.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            state: State::Closed,
            span: 0,
            trips: 0,
            in_a_row: 0,
            parts: [Part::default(); PARTS as usize],
        }
    }

    /// What it is doing at `now_ms`. An open breaker whose time is over is half-open.
    pub fn phase(&self, now_ms: u64) -> Phase {
        match self.state {
            State::Closed => Phase::Closed,
            State::Open { until_ms } if now_ms < until_ms => Phase::Open,
            State::Open { .. } | State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Whether a call may be made now, and the change that comes with asking.
    pub fn admit(&mut self, now_ms: u64) -> (Admission, Option<Change>) {
        let mut change = None;
        if let State::Open { until_ms } = self.state {
            if now_ms < until_ms {
                let wait = Duration::from_millis(until_ms - now_ms);
                return (Admission::Wait(wait), None);
            }
            self.half_open();
            change = Some(Change::HalfOpened);
        }
        let probe = match &mut self.state {
            State::HalfOpen { probing, .. } if *probing >= self.rules.probes => {
                return (Admission::Wait(ASK_AGAIN), change);
            }
            State::HalfOpen { probing, .. } => {
                *probing += 1;
                true
            }
            State::Closed | State::Open { .. } => false,
        };
        let span = self.span;
        (Admission::Pass(Pass { span, probe }), change)
    }

    /// Takes in the outcome of a call, and gives the change that it makes.
    pub fn report(&mut self, now_ms: u64, pass: Pass, verdict: Verdict) -> Option<Change> {
        if pass.span != self.span {
            return None;
        }
        if let State::HalfOpen { probing, successes } = &mut self.state {
            *probing = probing.saturating_sub(1);
            match verdict {
                Verdict::Nothing => {}
                Verdict::Failure => return Some(self.open(now_ms)),
                Verdict::Success => {
                    *successes += 1;
                    if *successes >= self.rules.probes {
                        return Some(self.close());
                    }
                }
            }
            return None;
        }
        match verdict {
            Verdict::Nothing => return None,
            Verdict::Success => self.in_a_row = 0,
            Verdict::Failure => self.in_a_row += 1,
        }
        self.count(now_ms, verdict == Verdict::Failure);
        (verdict == Verdict::Failure && self.trips_now(now_ms)).then(|| self.open(now_ms))
    }

    /// Takes in what is shared of it; `None` means that it is closed for everybody.
    pub fn adopt(&mut self, now_ms: u64, shared: Option<Shared>) -> Option<Change> {
        let Some(Shared { remaining, trips }) = shared else {
            return (self.state != State::Closed).then(|| self.close());
        };
        self.trips = self.trips.max(trips);
        if remaining.is_zero() {
            if self.state == State::Closed {
                self.half_open();
                return Some(Change::HalfOpened);
            }
            return None;
        }
        let theirs = now_ms.saturating_add(millis(remaining));
        if let State::Open { until_ms } = &mut self.state {
            *until_ms = theirs.max(*until_ms);
            return None;
        }
        self.state = State::Open { until_ms: theirs };
        self.begin_span();
        Some(Change::Opened {
            lasts: remaining,
            trips: self.trips,
        })
    }

    fn open(&mut self, now_ms: u64) -> Change {
        self.trips = self.trips.saturating_add(1);
        let lasts = self.rules.open * 2_u32.pow((self.trips - 1).min(10));
        let lasts = lasts.min(LONGEST_OPEN.max(self.rules.open));
        self.state = State::Open {
            until_ms: now_ms.saturating_add(millis(lasts)),
        };
        self.begin_span();
        let trips = self.trips;
        Change::Opened { lasts, trips }
    }

    fn half_open(&mut self) {
        self.state = State::HalfOpen {
            probing: 0,
            successes: 0,
        };
        self.begin_span();
    }

    fn close(&mut self) -> Change {
        self.state = State::Closed;
        self.trips = 0;
        self.begin_span();
        Change::Closed
    }

    fn begin_span(&mut self) {
        self.span += 1;
        self.in_a_row = 0;
        self.parts = [Part::default(); PARTS as usize];
    }

    fn part_length(&self) -> u64 {
        (millis(self.rules.window) / u64::from(PARTS)).max(1)
    }

    fn count(&mut self, now_ms: u64, failed: bool) {
        let number = now_ms / self.part_length();
        // Less than PARTS, hence in bounds on any machine.
        let part = &mut self.parts[usize::try_from(number % u64::from(PARTS)).unwrap_or(0)];
        if part.number != number {
            *part = Part {
                number,
                ..Part::default()
            };
        }
        part.calls = part.calls.saturating_add(1);
        part.failures = part.failures.saturating_add(u32::from(failed));
    }

    fn trips_now(&self, now_ms: u64) -> bool {
        if self.in_a_row >= self.rules.consecutive {
            return true;
        }
        let newest = now_ms / self.part_length();
        let within =
            |part: &&Part| part.number + u64::from(PARTS) > newest && part.number <= newest;
        let (mut calls, mut failures) = (0_u64, 0_u64);
        for part in self.parts.iter().filter(within) {
            calls += u64::from(part.calls);
            failures += u64::from(part.failures);
        }
        calls >= u64::from(self.rules.min_calls.max(1))
            && failures * 100 >= calls * u64::from(self.rules.failure_percent)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        consecutive: 5,
        window: Duration::from_secs(10),
        min_calls: 10,
        failure_percent: 50,
        open: Duration::from_secs(20),
        probes: 2,
    };

    fn pass(breaker: &mut Breaker, now: u64) -> Pass {
        match breaker.admit(now).0 {
            Admission::Pass(pass) => pass,
            Admission::Wait(wait) => panic!("to wait {wait:?}"),
        }
    }

    fn call(breaker: &mut Breaker, now: u64, verdict: Verdict) -> Option<Change> {
        let pass = pass(breaker, now);
        breaker.report(now, pass, verdict)
    }

    fn tripped() -> Breaker {
        let mut breaker = Breaker::new(RULES);
        for _ in 0..4 {
            assert_eq!(call(&mut breaker, 0, Verdict::Failure), None);
        }
        let opened = call(&mut breaker, 0, Verdict::Failure);
        let (lasts, trips) = (RULES.open, 1);
        assert_eq!(opened, Some(Change::Opened { lasts, trips }));
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_begins_the_row_anew() {
        tripped();
        let mut breaker = Breaker::new(Rules {
            min_calls: 1000,
            ..RULES
        });
        for _ in 0..100 {
            for _ in 0..4 {
                assert_eq!(call(&mut breaker, 0, Verdict::Failure), None);
            }
            assert_eq!(call(&mut breaker, 0, Verdict::Success), None);
        }
    }

    #[test]
    fn a_share_of_failures_opens_it_only_with_enough_calls_and_within_the_window() {
        let mut breaker = Breaker::new(RULES);
        for n in 0..9 {
            let verdict = [Verdict::Failure, Verdict::Success][n % 2];
            assert_eq!(call(&mut breaker, 100, verdict), None, "call {n}");
        }
        // The tenth is too late: of the others, none is in the window any more.
        let mut late = breaker.clone();
        assert_eq!(call(&mut late, 11_000, Verdict::Failure), None);
        assert!(matches!(
            call(&mut breaker, 9_000, Verdict::Failure),
            Some(Change::Opened { .. })
        ));
    }

    #[test]
    fn what_says_nothing_counts_for_nothing() {
        let mut breaker = Breaker::new(RULES);
        for _ in 0..1000 {
            assert_eq!(call(&mut breaker, 0, Verdict::Nothing), None);
        }
        for _ in 0..4 {
            call(&mut breaker, 0, Verdict::Failure);
            call(&mut breaker, 0, Verdict::Nothing);
        }
        assert_eq!(breaker.phase(0), Phase::Closed);
    }

    #[test]
    fn nothing_passes_until_its_time_is_over_and_then_a_few_probes() {
        let mut breaker = tripped();
        let wait = Admission::Wait(Duration::from_millis(1));
        assert_eq!(breaker.admit(19_999), (wait, None));
        assert_eq!(breaker.phase(19_999), Phase::Open);
        let (first, change) = breaker.admit(20_000);
        assert_eq!(change, Some(Change::HalfOpened));
        let Admission::Pass(first) = first else {
            panic!("{first:?}")
        };
        let second = pass(&mut breaker, 20_000);
        assert!(first.probe && second.probe);
        assert_eq!(breaker.admit(20_000).0, Admission::Wait(ASK_AGAIN));
        // One that says nothing gives its place to another.
        assert_eq!(breaker.report(20_000, first, Verdict::Nothing), None);
        let third = pass(&mut breaker, 20_000);
        assert_eq!(breaker.report(20_000, second, Verdict::Success), None);
        let closed = breaker.report(20_000, third, Verdict::Success);
        assert_eq!(closed, Some(Change::Closed));
        assert!(!pass(&mut breaker, 20_000).probe);
    }

    #[test]
    fn a_failed_probe_opens_it_for_twice_as_long_up_to_a_limit() {
        let mut breaker = tripped();
        let mut now = 0;
        let mut times = vec![RULES.open];
        for trip in 2..=6 {
            now += millis(*times.last().unwrap());
            let (lasts, trips) = match call(&mut breaker, now, Verdict::Failure) {
                Some(Change::Opened { lasts, trips }) => (lasts, trips),
                other => panic!("{other:?}"),
            };
            assert_eq!(trips, trip);
            times.push(lasts);
        }
        let seconds: Vec<u64> = times.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [20, 40, 80, 160, 300, 300]);
        // Once it has closed, it begins anew.
        now += 300_000;
        call(&mut breaker, now, Verdict::Success);
        call(&mut breaker, now, Verdict::Success);
        for _ in 0..4 {
            call(&mut breaker, now, Verdict::Failure);
        }
        let (lasts, trips) = (RULES.open, 1);
        let opened = call(&mut breaker, now, Verdict::Failure);
        assert_eq!(opened, Some(Change::Opened { lasts, trips }));
    }

    #[test]
    fn what_comes_back_late_says_nothing() {
        let mut breaker = Breaker::new(RULES);
        let late = pass(&mut breaker, 0);
        for _ in 0..5 {
            call(&mut breaker, 0, Verdict::Failure);
        }
        assert_eq!(breaker.report(1, late, Verdict::Success), None);
        assert_eq!(breaker.phase(1), Phase::Open);
        let probe = pass(&mut breaker, 20_000);
        assert_eq!(breaker.report(20_000, late, Verdict::Failure), None);
        assert_eq!(breaker.phase(20_000), Phase::HalfOpen);
        assert_eq!(breaker.report(20_000, probe, Verdict::Nothing), None);
    }

    #[test]
    fn what_others_found_out_holds_here() {
        let shared = |seconds| {
            Some(Shared {
                remaining: Duration::from_secs(seconds),
                trips: 3,
            })
        };
        let mut breaker = Breaker::new(RULES);
        assert_eq!(breaker.adopt(0, None), None);
        assert!(matches!(
            breaker.adopt(0, shared(7)),
            Some(Change::Opened { trips: 3, .. })
        ));
        let wait = Admission::Wait(Duration::from_secs(7));
        assert_eq!(breaker.admit(0).0, wait);
        assert_eq!(breaker.adopt(1000, shared(2)), None, "never shortened");
        assert_eq!(breaker.phase(6_999), Phase::Open);
        assert_eq!(breaker.adopt(6_999, None), Some(Change::Closed));

        let mut fresh = Breaker::new(RULES);
        assert_eq!(fresh.adopt(0, shared(0)), Some(Change::HalfOpened));
        assert!(pass(&mut fresh, 0).probe, "it joins in with probes only");
        let failed = call(&mut fresh, 0, Verdict::Failure);
        assert!(matches!(failed, Some(Change::Opened { trips: 4, .. })));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(u64),
        Ask,
        Report(usize, Verdict),
        Adopt(Option<(u64, u32)>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let verdict = prop_oneof![
            1 => Just(Verdict::Success),
            3 => Just(Verdict::Failure),
            1 => Just(Verdict::Nothing),
        ];
        let step = prop_oneof![
            2 => (0_u64..9_000).prop_map(Step::Pass),
            4 => Just(Step::Ask),
            4 => (any::<usize>(), verdict).prop_map(|(n, v)| Step::Report(n, v)),
            1 => proptest::option::of((0_u64..40_000, 1_u32..9)).prop_map(Step::Adopt),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn whatever_happens_it_keeps_its_promises(steps in steps()) {
            let mut breaker = Breaker::new(RULES);
            let mut now = 1_000_000_u64;
            let mut passes: Vec<Pass> = Vec::new();
            for step in steps {
                let before = breaker.phase(now);
                match step {
                    Step::Pass(ms) => now += ms,
                    Step::Ask => match breaker.admit(now).0 {
                        Admission::Pass(pass) => {
                            prop_assert_ne!(before, Phase::Open);
                            prop_assert_eq!(pass.probe, before == Phase::HalfOpen);
                            passes.push(pass);
                        }
                        Admission::Wait(wait) => {
                            prop_assert_ne!(before, Phase::Closed);
                            prop_assert!(!wait.is_zero() && wait <= LONGEST_OPEN);
                        }
                    },
                    Step::Report(n, verdict) if !passes.is_empty() => {
                        let pass = passes.swap_remove(n % passes.len());
                        let change = breaker.report(now, pass, verdict);
                        match change {
                            None => {}
                            Some(Change::Opened { lasts, .. }) => {
                                prop_assert_eq!(verdict, Verdict::Failure);
                                prop_assert!(lasts >= RULES.open && lasts <= LONGEST_OPEN);
                                prop_assert_eq!(breaker.phase(now), Phase::Open);
                            }
                            Some(Change::Closed) => {
                                prop_assert_eq!(verdict, Verdict::Success);
                                prop_assert!(pass.probe);
                                prop_assert_eq!(breaker.phase(now), Phase::Closed);
                            }
                            Some(Change::HalfOpened) => prop_assert!(false),
                        }
                    }
                    Step::Report(..) => {}
                    Step::Adopt(shared) => {
                        let shared = shared.map(|(ms, trips)| Shared {
                            remaining: Duration::from_millis(ms),
                            trips,
                        });
                        breaker.adopt(now, shared);
                        match shared {
                            None => prop_assert_eq!(breaker.phase(now), Phase::Closed),
                            Some(s) if s.remaining.is_zero() => {
                                prop_assert_ne!(breaker.phase(now), Phase::Closed);
                            }
                            Some(_) => prop_assert_eq!(breaker.phase(now), Phase::Open),
                        }
                    }
                }
                // Probes under way are bounded.
                let span = breaker.span;
                let probing = passes.iter().filter(|p| p.probe && p.span == span).count();
                prop_assert!(probing <= RULES.probes as usize);
                // It always comes back: nothing is refused for longer than the longest opening.
                let mut later = breaker.clone();
                for pass in passes.iter().filter(|p| p.probe && p.span == span) {
                    later.report(now, *pass, Verdict::Nothing);
                }
                let then = now + millis(LONGEST_OPEN);
                prop_assert!(matches!(later.admit(then).0, Admission::Pass(_)));
            }
        }
    }
}
