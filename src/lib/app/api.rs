//! The API.

use std::sync::Arc;

use anyhow::anyhow;
use tokio::sync::oneshot;

use super::base::Base;
use crate::api::{ApiParts, ApiState, Tls};
use crate::config::Settings;
use crate::governance::{AuditTrail, Budgets, Governance, Keys, Tenants};
use crate::pricing::Prices;
use crate::runtime::bind;
use crate::stream::Streams;

pub(super) async fn serve(settings: Arc<Settings>) -> anyhow::Result<()> {
    let redis_timeout = settings.redis_timeout_ms.duration();
    let base = Base::start("agenthub-api", &settings, redis_timeout)?;
    let tls = Tls::load(&settings)?;
    let listener = bind(settings.api_addr).await.map_err(|e| anyhow!(e))?;
    tracing::info!(addr = %listener.local_addr()?, tls = tls.is_some(), "API");
    let streams = Streams::start(
        &settings,
        base.runs.clone(),
        &base.supervisor,
        base.shutdown.end(),
    )?;
    let state = ApiState::new(ApiParts {
        settings: (*settings).clone(),
        redis: base.redis.clone(),
        runs: base.runs.clone(),
        governance: Governance::new(base.signer.clone(), &settings),
        keys: Keys::new(
            base.redis.clone(),
            base.outbox.producer().clone(),
            base.signer.clone(),
        ),
        trail: AuditTrail::start(
            base.outbox.producer().clone(),
            &settings,
            &base.supervisor,
            base.shutdown.end(),
        ),
        tenants: Tenants::new(base.redis.clone(), base.outbox.producer().clone()),
        budgets: Budgets::new(base.runs.clone(), base.outbox.producer().clone()),
        prices: Arc::new(Prices::load(settings.prices_file.as_deref())?),
        data_keys: base.keys.clone(),
        masker: base.masker.clone(),
        outbox: base.outbox.clone(),
        streams,
        health: base.health.clone(),
        metrics: base.telemetry.metrics(),
        supervisor: base.supervisor.clone(),
        stopping: base.shutdown.intake(),
    });
    if let Some(tls) = &tls {
        let (tls, stop) = (tls.clone(), base.shutdown.end());
        let watch = move || tls.clone().watch(stop.clone());
        base.supervisor.run("certificate", watch);
    }
    let (ended, has_ended) = oneshot::channel();
    let intake = base.shutdown.intake();
    base.supervisor.run_once("server", async move {
        let _ = {
            let _: () = crate::api::serve(listener, state, tls, intake).await;
            ended.send(())
        };
    });
    tokio::pin!(has_ended);
    let failed = async {
        let _ = (&mut has_ended).await;
        Err(anyhow!("the server ended"))
    };
    let outcome = base.until_told(failed).await.map(drop);
    if outcome.is_ok() {
        // Requests under way end, streams ask their clients to reconnect.
        let _ = tokio::time::timeout(settings.drain_ms.duration(), has_ended).await;
    }
    base.finish().await;
    outcome
}
