//! Replay: reads what the topics hold, shows it, keeps it, and puts commands onto their topic once
//! more; and fills an empty Redis again.
//!
//! Invariant: original bytes are forwarded as they are, never signed again, and only where a finished
//! run stays finished.

mod enqueue;
mod opening;
pub mod rebuild;
mod saved;
mod selection;
mod story;
mod summary;
mod view;

pub use enqueue::{Enqueue, Pace};
pub use opening::{Keys, cover};
pub use saved::{Saved, SavedError};
pub use selection::{Filter, Selection, Skipped};
pub use story::{Happening, Story};
pub use summary::Summary;
pub use view::View;
