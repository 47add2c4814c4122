//! The life of a process: its tasks, its health, its orderly end.
//!
//! Invariant: every task is supervised here. One that panics is started again with a growing delay;
//! none dies in silence. Shutdown goes in one order: readiness off, intake stopped, work drained to a
//! deadline, offsets committed, producer flushed, telemetry flushed, exit code.

pub mod clock;
mod hangups;
mod health;
mod probe;
mod shutdown;
mod supervisor;

pub use hangups::Hangups;
pub use health::{Check, Health};
pub use probe::{Exposition, ProbeServer, bind};
pub use shutdown::{Shutdown, on_hangup};
pub use supervisor::Supervisor;
