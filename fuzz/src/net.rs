#[path = "../../src/lib/net/address.rs"]
pub mod address;
#[path = "../../src/lib/net/allow_list.rs"]
pub mod allow_list;
#[path = "../../src/lib/net/hops.rs"]
pub mod hops;
#[path = "../../src/lib/net/policy.rs"]
pub mod policy;

pub use allow_list::AllowList;
pub use hops::Hops;
pub use policy::{Block, BlockReason, Decision, Policy, Target};
