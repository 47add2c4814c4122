//! The planner and the executor.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::base::Base;
use super::consumer::{self, Reading};
use crate::config::{Settings, StorageSettings};
use crate::kafka::{Consumer, Handler};
use crate::llm::LlmClient;
use crate::llm::endpoints::{Endpoint, endpoints};
use crate::llm::openai::OpenAiClient;
use crate::messages::Topic;
use crate::net::{AllowList, Limits, Policy, SafeClient};
use crate::pricing::Prices;
use crate::tools::ads::AdsMetricsMock;
use crate::tools::catalogue;
use crate::tools::declared::Declared;
use crate::tools::http_fetch::{CONTENT_TYPES, HttpFetch};
use crate::tools::http_tool::{self, HttpTool};
use crate::tools::registry::ToolRegistry;
use crate::tools::retrieval::Retrieval;
use crate::tools::retrieval::corpus::Corpus;
use crate::tools::retrieval::storage::Storage;
use crate::tools::summarize::Summarize;
use crate::worker::{
    Breakers, Execution, Leases, LlmRouter, Planning, Results, Sweeper, Work, Worker, WorkerContext,
};

/// A worker waits for Redis rather than failing a run.
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);

/// What kind of worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Plans.
    Planner,
    /// Executes.
    Executor,
}

impl Role {
    /// Binary, service and log name.
    pub fn service(self) -> &'static str {
        match self {
            Self::Planner => "agenthub-planner",
            Self::Executor => "agenthub-executor",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Planner => "planner",
            Self::Executor => "executor",
        }
    }

    fn topic(self) -> Topic {
        match self {
            Self::Planner => Topic::PlanCommands,
            Self::Executor => Topic::ExecuteCommands,
        }
    }
}

pub(super) async fn serve(
    role: Role,
    settings: Arc<Settings>,
    reading: Reading,
) -> anyhow::Result<()> {
    let base = Base::start(role.service(), &settings, REDIS_TIMEOUT)?;
    consumer::serve_probes(&base, settings.probe_addr).await?;

    check_cache_ttls(&settings)?;
    let breakers = Arc::new(Breakers::new(
        base.redis.clone(),
        base.keys.clone(),
        base.supervisor.clone(),
        &settings,
    ));
    let prices = Arc::new(Prices::load(settings.prices_file.as_deref())?);
    let llm = llm_router(&settings, &prices, breakers.clone())?;
    let work = match role {
        Role::Planner => Work::Plan(Planning::new(llm, settings.clone())),
        Role::Executor => {
            let tools = tools(&settings, Arc::new(llm), &base.declared)?;
            let results = Results::new(base.redis.clone(), base.keys.clone(), &settings.cache_ttls);
            Work::Execute(Execution::new(
                Arc::new(tools),
                settings.clone(),
                base.masker.clone(),
                breakers,
                Arc::new(results),
            ))
        }
    };
    let leases = Arc::new(Leases::default());
    let context = Arc::new(WorkerContext {
        worker: format!("{}@{}", role.service(), uuid::Uuid::now_v7()),
        settings: settings.clone(),
        runs: base.runs.clone(),
        outbox: base.outbox.clone(),
        signer: base.signer.clone(),
        keys: base.keys.clone(),
        masker: base.masker.clone(),
        prices,
        leases: leases.clone(),
        supervisor: base.supervisor.clone(),
        stopping: base.shutdown.intake(),
    });
    {
        let (runs, lease, stop) = (
            base.runs.clone(),
            settings.lease_ms.duration(),
            base.shutdown.end(),
        );
        base.supervisor.run("leases", move || {
            let (leases, runs, stop) = (leases.clone(), runs.clone(), stop.clone());
            async move { leases.renew(&runs, lease, &stop).await }
        });
    }
    {
        let sweeper = Sweeper::new(
            base.runs.clone(),
            base.outbox.clone(),
            settings.sweep_interval_ms.duration(),
            settings.outbox_retry_ms.duration(),
        );
        let stop = base.shutdown.intake();
        base.supervisor
            .run("sweeper", move || sweeper.clone().run(stop.clone()));
    }

    let group = reading.group(role.group());
    let options = reading
        .options(&base, &settings, role.service(), &group, role.topic())
        .await?;
    let worker: Arc<dyn Handler> = Arc::new(Worker::new(context, work));
    let kafka = base.kafka.clone();
    let consumer = consumer::start(&base, move || {
        Consumer::new(
            &kafka,
            &group,
            &[role.topic()],
            worker.clone(),
            options.clone(),
        )
    });
    consumer.run(base, std::future::pending()).await
}

fn llm_router(
    settings: &Settings,
    prices: &Prices,
    breakers: Arc<Breakers>,
) -> anyhow::Result<LlmRouter> {
    let timeout = settings.llm_timeout_ms.duration();
    let mut clients: Vec<(Endpoint, Arc<dyn LlmClient>)> = Vec::new();
    for endpoint in endpoints(settings)? {
        if let Some(model) = &endpoint.model {
            // No budget could be kept with it, so it would fail what it is to save.
            let bound = prices.upper_bound_micro_usd(model, 0, 0, jiff::Timestamp::now());
            anyhow::ensure!(
                bound.is_some(),
                "AGENTHUB_LLM_FALLBACK: the model {model:?} has no price"
            );
        }
        let client = OpenAiClient::new(&endpoint.base_url, endpoint.api_key.clone(), timeout)
            .with_context(|| format!("endpoint {}", endpoint.name))?;
        clients.push((endpoint, Arc::new(client)));
    }
    Ok(LlmRouter::new(clients, breakers, timeout))
}

/// A misspelt tool is not ignored, and one that does not declare it keeps no results.
fn check_cache_ttls(settings: &Settings) -> anyhow::Result<()> {
    for ttl in &settings.cache_ttls {
        let spec = catalogue::find(&ttl.tool);
        let keeps = spec.is_some_and(|spec| spec.cache.is_some());
        anyhow::ensure!(
            keeps,
            "AGENTHUB_CACHE_TTLS: {:?} is no tool whose results can be kept",
            ttl.tool
        );
    }
    Ok(())
}

fn tools(
    settings: &Settings,
    llm: Arc<dyn LlmClient>,
    declared: &[Declared],
) -> anyhow::Result<ToolRegistry> {
    let corpus = Corpus::new(Storage::open(&StorageSettings::from(settings))?);
    let retrieval = Retrieval::open(
        corpus,
        &settings.cache_dir,
        settings.docs_refresh_ms.duration(),
    )
    .with_context(|| format!("AGENTHUB_CACHE_DIR {}", settings.cache_dir.display()))?;
    let policy =
        Policy::new(AllowList::parse(&settings.fetch_allow).context("AGENTHUB_FETCH_ALLOW")?);
    let limits = Limits {
        total: settings.fetch_timeout_ms.duration(),
        max_bytes: settings.fetch_max_bytes.0,
        content_types: CONTENT_TYPES,
    };
    let fetch = HttpFetch::new(
        SafeClient::new(policy.clone(), limits)?,
        settings.fetch_max_bytes.0,
        settings.max_output_bytes.0,
    );
    let mut tools = ToolRegistry::new();
    tools.register(Arc::new(AdsMetricsMock))?;
    tools.register(Arc::new(retrieval))?;
    tools.register(Arc::new(fetch))?;
    tools.register(Arc::new(Summarize::new(
        llm,
        settings.model.clone(),
        settings.llm_max_output_tokens,
    )))?;
    for tool in declared {
        let limits = Limits {
            total: tool.spec.timeout,
            max_bytes: settings.max_output_bytes.0,
            content_types: http_tool::CONTENT_TYPES,
        };
        let client = SafeClient::new(policy.clone(), limits)?;
        tools.register(Arc::new(HttpTool::new(tool.clone(), &policy, client)?))?;
    }
    Ok(tools)
}
