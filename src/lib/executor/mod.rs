//! Carrying a plan out. The decisions are here and pure: which step may start ([`schedule`]) and what
//! follows a failed attempt ([`retry`]).
//!
//! Invariant: a step starts only when every step that it waits for has succeeded, and nothing starts
//! once a step has failed.

pub mod retry;
pub mod schedule;
