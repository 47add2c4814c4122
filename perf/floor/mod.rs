//! What the product is compared with: the unavoidable I/O and nothing else.

pub mod http;
pub mod kafka;
pub mod ledger;
pub mod pubsub;
