//! The rooms of AgentHub that are fuzzed, made of the same files as the product, and without the libraries of
//! the others: Kafka, Arrow and search would take a quarter of an hour to instrument and are not fuzzed.

#![allow(dead_code, missing_docs, unused_imports)]

#[path = "../../src/lib/ids.rs"]
pub mod ids;
#[path = "../../src/lib/messages/mod.rs"]
pub mod messages;
#[path = "../../src/lib/privacy/mod.rs"]
pub mod privacy;

pub mod governance {
    #[path = "../../../src/lib/governance/api_key.rs"]
    mod api_key;
    pub use api_key::PresentedKey;
}

pub mod net {
    #[path = "../../../src/lib/net/address.rs"]
    pub mod address;
    #[path = "../../../src/lib/net/allow_list.rs"]
    pub mod allow_list;
    #[path = "../../../src/lib/net/hops.rs"]
    pub mod hops;
    #[path = "../../../src/lib/net/policy.rs"]
    pub mod policy;
    pub use allow_list::AllowList;
    pub use hops::Hops;
    pub use policy::{Block, BlockReason, Decision, Policy, Target};
}
