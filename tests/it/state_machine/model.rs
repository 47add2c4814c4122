//! The life of the runs of one session and tenant as the contract tells it, without Redis and without a
//! clock. The scripts are held against it.

use std::collections::{BTreeMap, BTreeSet};

use agenthub::messages::CommandKind;
use agenthub::runs::{CancelMode, Outcome, RunStatus};

/// Runs of the tenant that may be carried out at once.
pub const MAX_LIVE: usize = 2;
/// Times that a run may be taken up without progress.
pub const MAX_DELIVERIES: u32 = 2;

/// What a run waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The runs of its session before it.
    Session,
    /// A slot of its tenant.
    Tenant,
}

/// Where the owner sends a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// It keeps it.
    Nowhere,
    Execute,
    Park,
    End(RunStatus),
}

/// A time that may have come; `n` orders those that have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Time {
    Ahead,
    Come(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    pub status: &'static str,
    pub stage: &'static str,
    pub parallel: bool,
    pub owner: Option<u8>,
    pub lease: Time,
    pub deadline: Time,
    pub wake_at: Option<Time>,
    pub cancel: Option<&'static str>,
    pub deliveries: u32,
    pub parked: Option<Place>,
    begun: Option<(&'static str, u8)>,
    /// A command of it is on its way to a worker.
    pub command: bool,
    pub terminal_events: u32,
    /// What the last transition of each owner came to, by its number; for repeats.
    did: BTreeMap<u8, (u64, bool)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    pub runs: Vec<Run>,
    /// Runs that wait for each other, in the order in which they may start.
    pub order: Vec<usize>,
    pub live: BTreeSet<usize>,
    wait: BTreeSet<usize>,
}

pub fn is_terminal(status: &str) -> bool {
    ["succeeded", "failed", "cancelled", "timed_out"].contains(&status)
}

impl Run {
    pub fn is_terminal(&self) -> bool {
        is_terminal(self.status)
    }

    /// When the sweeper looks at it: `None` when no time of it has come.
    fn due(&self) -> Option<u32> {
        let lease = self.owner.map_or(Time::Ahead, |_| self.lease);
        [self.deadline, lease, self.wake_at.unwrap_or(Time::Ahead)]
            .into_iter()
            .filter_map(|time| match time {
                Time::Come(n) => Some(n),
                Time::Ahead => None,
            })
            .min()
    }
}

impl Model {
    /// Whether the run was admitted.
    pub fn admit(&mut self, parallel: bool, reject: bool) -> bool {
        if reject && !self.order.is_empty() {
            return false;
        }
        if !parallel {
            self.order.push(self.runs.len());
        }
        self.runs.push(Run {
            status: "queued",
            stage: "plan",
            parallel,
            owner: None,
            lease: Time::Ahead,
            deadline: Time::Ahead,
            wake_at: None,
            cancel: None,
            deliveries: 0,
            parked: None,
            begun: None,
            command: true,
            terminal_events: 0,
            did: BTreeMap::new(),
        });
        true
    }

    pub fn acquire(&mut self, id: usize, owner: u8, stage: CommandKind) -> Outcome {
        let run = &mut self.runs[id];
        if stage.as_str() == run.stage {
            run.command = false;
        }
        if run.is_terminal() {
            return Outcome::Ended;
        }
        if run.stage != stage.as_str() {
            return Outcome::Stale;
        }
        if run.owner.is_some() && run.owner != Some(owner) && run.lease == Time::Ahead {
            return Outcome::Busy;
        }
        if run.deadline != Time::Ahead {
            self.end(id, "timed_out");
            return Outcome::Ended;
        }
        if run.cancel.is_some() {
            self.end(id, "cancelled");
            return Outcome::Ended;
        }
        if run.wake_at == Some(Time::Ahead) {
            return Outcome::Parked;
        }
        if !run.parallel && self.order.first() != Some(&id) {
            run.parked = Some(Place::Session);
            return Outcome::Waiting;
        }
        if !self.live.contains(&id) {
            if self.live.len() >= MAX_LIVE {
                run.parked = Some(Place::Tenant);
                self.wait.insert(id);
                return Outcome::Waiting;
            }
            self.live.insert(id);
        }
        self.wait.remove(&id);
        let run = &mut self.runs[id];
        (run.parked, run.wake_at) = (None, None);
        if run.owner != Some(owner) {
            run.deliveries += 1;
        }
        (run.owner, run.lease) = (Some(owner), Time::Ahead);
        if run.deliveries > MAX_DELIVERIES {
            return Outcome::Poisoned;
        }
        run.status = if stage == CommandKind::Plan {
            "planning"
        } else {
            "executing"
        };
        match run.begun {
            Some((begun, by)) if begun == stage.as_str() => {
                if by == owner {
                    Outcome::Acquired
                } else {
                    Outcome::Resumed
                }
            }
            _ => {
                run.begun = Some((stage.as_str(), owner));
                Outcome::Acquired
            }
        }
    }

    /// Whether the transition was recorded, and the cancellation that its owner hears of.
    pub fn record(
        &mut self,
        id: usize,
        owner: u8,
        number: u64,
        progress: bool,
        to: To,
    ) -> (bool, Option<&'static str>) {
        let run = &mut self.runs[id];
        if let Some((done, recorded)) = run.did.get(&owner)
            && *done >= number
        {
            return (*recorded, run.cancel.filter(|_| *recorded));
        }
        let owned = run.owner == Some(owner) && !run.is_terminal();
        run.did.insert(owner, (number, owned));
        if !owned {
            return (false, None);
        }
        if progress {
            run.deliveries = 0;
        }
        let to = match to {
            To::Execute | To::Park if run.cancel.is_some() => To::End(RunStatus::Cancelled),
            to => to,
        };
        match to {
            To::Nowhere => {}
            To::Execute => {
                (run.owner, run.stage, run.deliveries) = (None, "execute", 0);
                run.command = true;
            }
            To::Park => {
                (run.owner, run.wake_at, run.deliveries) = (None, Some(Time::Ahead), 0);
                run.status = "retry_wait";
            }
            To::End(status) => {
                self.end(id, status.as_str());
                return (true, None);
            }
        }
        (true, self.runs[id].cancel)
    }

    /// What the owner hears when it renews: `None` when the run is not its own.
    #[allow(clippy::option_option)] // owned or not, and then told of a cancellation or not
    pub fn renew(&mut self, id: usize, owner: u8) -> Option<Option<&'static str>> {
        let run = &mut self.runs[id];
        if run.owner != Some(owner) || run.is_terminal() {
            return None;
        }
        run.lease = Time::Ahead;
        Some(run.cancel)
    }

    /// What a client that cancels is told.
    pub fn cancel(&mut self, id: usize, mode: CancelMode) -> &'static str {
        let run = &mut self.runs[id];
        if run.is_terminal() {
            return run.status;
        }
        if run.owner.is_some() && run.lease == Time::Ahead {
            if run.cancel != Some("force") {
                run.cancel = Some(match mode {
                    CancelMode::Graceful => "graceful",
                    CancelMode::Force => "force",
                });
            }
            run.status = "cancelling";
            return "cancelling";
        }
        self.end(id, "cancelled");
        "cancelled"
    }

    /// Whether the run was ended because its command could not be produced.
    pub fn abandon(&mut self, id: usize) -> bool {
        let run = &self.runs[id];
        if run.is_terminal() || run.owner.is_some() || run.status != "queued" {
            return false;
        }
        self.end(id, "failed");
        true
    }

    /// What the sweeper did, in its order.
    pub fn sweep(&mut self) -> Vec<(&'static str, usize)> {
        let mut due: Vec<(u32, usize)> = (0..self.runs.len())
            .filter(|id| !self.runs[*id].is_terminal())
            .filter_map(|id| Some((self.runs[id].due()?, id)))
            .collect();
        due.sort_unstable();
        let mut actions = Vec::new();
        for (_, id) in due {
            let run = &mut self.runs[id];
            if run.deadline != Time::Ahead {
                actions.push(("timed_out", id));
                self.end(id, "timed_out");
            } else if run.owner.is_some() && run.lease != Time::Ahead {
                actions.push(("lease_expired", id));
                run.owner = None;
                if run.cancel.is_some() {
                    actions.push(("cancelled", id));
                    self.end(id, "cancelled");
                } else {
                    self.wake(id);
                }
            } else if matches!(run.wake_at, Some(Time::Come(_))) {
                actions.push(("woken", id));
                self.wake(id);
            }
        }
        actions
    }

    fn wake(&mut self, id: usize) {
        let run = &mut self.runs[id];
        (run.wake_at, run.parked, run.command) = (None, None, true);
    }

    fn end(&mut self, id: usize, status: &'static str) {
        let run = &mut self.runs[id];
        assert!(!run.is_terminal(), "{id} ends twice");
        run.status = status;
        run.terminal_events += 1;
        (run.owner, run.wake_at, run.cancel, run.parked) = (None, None, None, None);
        self.live.remove(&id);
        self.wait.remove(&id);
        self.order.retain(|other| *other != id);
        if let Some(head) = self.order.first().copied()
            && self.runs[head].parked == Some(Place::Session)
        {
            self.wake(head);
        }
        while self.live.len() < MAX_LIVE {
            let Some(next) = self.wait.pop_first() else {
                break;
            };
            if self.runs[next].parked == Some(Place::Tenant) {
                self.live.insert(next);
                self.wake(next);
            }
        }
    }

    /// Forgets what the owners did, so that states that differ in nothing else are the same.
    pub fn forget_transitions(&mut self) {
        for run in &mut self.runs {
            run.did.clear();
        }
    }

    /// What holds in every state, whatever happened.
    pub fn check(&self) {
        assert!(self.live.len() <= MAX_LIVE, "{self:?}");
        for (id, run) in self.runs.iter().enumerate() {
            assert_eq!(
                run.terminal_events,
                u32::from(run.is_terminal()),
                "{id}: {self:?}"
            );
            if run.is_terminal() {
                assert!(
                    !self.live.contains(&id) && !self.order.contains(&id),
                    "{id}: {self:?}"
                );
                continue;
            }
            // Nobody is forgotten: something will move it on.
            let before = self.order.first().is_some_and(|head| *head != id);
            let moves = run.command
                || run.owner.is_some() // its lease
                || run.wake_at.is_some()
                || (run.parked == Some(Place::Session) && before)
                || (run.parked == Some(Place::Tenant) && self.live.len() == MAX_LIVE)
                || run.deadline != Time::Ahead;
            assert!(moves, "nothing moves {id} on: {self:?}");
            if run.owner.is_some() {
                assert!(
                    self.live.contains(&id),
                    "{id} is carried out without a slot: {self:?}"
                );
                let first = run.parallel || self.order.first() == Some(&id);
                assert!(first, "{id} is carried out before its turn: {self:?}");
            }
        }
    }
}
