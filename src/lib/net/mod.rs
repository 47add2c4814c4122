//! HTTP that outside data may steer without reaching what is private (a guard against server-side
//! request forgery).
//!
//! The decisions are pure: [`address`] knows which addresses are global, [`policy`] which URLs may
//! be fetched, [`hops`] how redirects are followed. [`client`] applies them where they cannot be
//! bypassed: inside the DNS resolver of the HTTP client, so that the address that was checked is
//! the address that is connected to, and again before every hop.
//!
//! Invariant: no connection is opened to an address that is not global unless the operator listed
//! the URL's host, and none to a metadata service unless the operator listed exactly that service.

pub mod address;
pub mod allow_list;
pub mod client;
pub mod error;
pub mod freshness;
pub mod hops;
pub mod policy;
mod resolver;
pub mod retry_after;
pub mod webhook;

pub use allow_list::AllowList;
pub use client::{Fetched, Limits, SafeClient};
pub use error::{Class, FetchError};
pub use hops::Hops;
pub use policy::{Block, BlockReason, Decision, Policy, Target};
pub use resolver::lookup;
pub use webhook::{WebhookClient, WebhookError};
