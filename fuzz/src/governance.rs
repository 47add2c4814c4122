#[path = "../../src/lib/governance/api_key.rs"]
mod api_key;

pub use api_key::PresentedKey;
