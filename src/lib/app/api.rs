//! The API.

use std::sync::Arc;

use crate::config::Settings;

pub(super) async fn serve(_settings: Arc<Settings>) -> anyhow::Result<()> {
    anyhow::bail!("being wired")
}
