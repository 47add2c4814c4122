//! Carrying a plan out. The decisions are here and pure: which step may start ([`schedule`]), what
//! follows a failed attempt ([`retry`]), when calls are held back ([`breaker`]), and which arguments
//! are the same ([`canonical`]).
//!
//! Invariant: a step starts only when every step that it waits for has succeeded, and nothing starts
//! once a step has failed.

pub mod breaker;
pub mod canonical;
pub mod retry;
pub mod schedule;
