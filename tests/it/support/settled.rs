//! Whether a run has left nothing behind.

use agenthub::ids::SessionId;
use agenthub::runs::Runs;
use redis::AsyncCommands;

use super::stack::Stack;
use super::{eventually, settings};

impl Stack {
    /// The ledger that the processes share.
    pub fn runs(&self) -> Runs {
        Runs::new(self.redis(), &settings(&self.namespace, &[]))
    }

    /// A Redis key of the tenant.
    pub fn key(&self, rest: &str) -> String {
        format!("{}:{rest}", self.redis().base(&self.tenant))
    }

    /// Panics unless the run has ended with one terminal event, and nothing of it is left to be done:
    /// no record in its outbox, no timer, no slot.
    pub async fn assert_settled(&self, run: &str) {
        let mut redis = self.redis().connection();
        let left = async || {
            let mut redis = redis.clone();
            let fields: Vec<String> = redis.hkeys(self.key(&format!("run:{run}"))).await.unwrap();
            let outbox = fields.iter().filter(|f| f.starts_with("o:")).count();
            let timer: Option<f64> = redis.zscore(self.key("timers"), run).await.unwrap();
            let live: bool = redis.sismember(self.key("live"), run).await.unwrap();
            let waits: Option<f64> = redis.zscore(self.key("wait"), run).await.unwrap();
            (outbox, timer, live, waits)
        };
        eventually(&format!("{run} leaves nothing"), async || {
            (left().await == (0, None, false, None)).then_some(())
        })
        .await;
        let field = |name: &'static str| (self.key(&format!("run:{run}")), name);
        let (key, name) = field("session");
        let session: String = redis.hget(key, name).await.unwrap();
        let (key, name) = field("status");
        let status: String = redis.hget(key, name).await.unwrap();
        let session: SessionId = session.parse().unwrap();
        let beginning = "0-0".parse().unwrap();
        let history = self.runs();
        let history = history
            .history(&self.tenant, &session, beginning, 100_000)
            .await
            .unwrap();
        let own: Vec<_> = history
            .iter()
            .filter(|event| event.run_id.as_str() == run)
            .collect();
        let terminal = own.iter().filter(|event| event.event_type.is_terminal());
        let kinds: Vec<_> = own.iter().map(|event| event.event_type.as_str()).collect();
        assert_eq!(terminal.count(), 1, "{run}: {kinds:?}");
        // Nothing follows it, and it tells how the run ended.
        let last = kinds.last().copied().unwrap_or_default();
        assert_eq!(last, format!("run.{status}"), "{kinds:?}");
        let position: Option<i64> = redis
            .lpos(
                self.key(&format!("ord:{session}")),
                run,
                redis::LposOptions::default(),
            )
            .await
            .unwrap();
        assert_eq!(position, None, "{run} holds its place in its session");
    }
}
