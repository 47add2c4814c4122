//! The connection: to one Redis, or to a cluster.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{Cmd, IntoConnectionInfo, Pipeline, RedisFuture, RedisResult, Value};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;
use url::Url;

use super::StoreError;

/// Time after which a connection whose other end acknowledges nothing is given up and made again. Without
/// it, a Redis whose machine is gone would be waited for until the kernel gives up, a quarter of an hour.
const SILENCE: Duration = Duration::from_secs(5);

/// A shared, pipelined connection that restores itself. Cheap to clone.
#[derive(Clone)]
pub struct Connection(Kind);

#[derive(Clone)]
enum Kind {
    One(ConnectionManager),
    Cluster(Box<Cluster>),
}

/// A connection to a cluster, made when it is first needed: unlike that to one Redis it cannot be made
/// without asking the cluster for its slots.
#[derive(Clone)]
struct Cluster {
    client: ClusterClient,
    connection: Arc<OnceCell<ClusterConnection>>,
}

impl Connection {
    /// `redis://…` names one Redis; `redis-cluster://host:port?node=host:port` nodes of a cluster. Each
    /// command ends within `timeout`, whatever Redis does.
    pub(super) fn new(url: &SecretString, timeout: Duration) -> Result<Self, StoreError> {
        let url = url.expose_secret();
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_user_timeout(SILENCE);
        if let Some(nodes) = cluster_nodes(url)? {
            let client = ClusterClientBuilder::new(nodes)
                .connection_timeout(timeout)
                .response_timeout(timeout)
                .overall_response_timeout(Some(timeout))
                .tcp_settings(tcp)
                .retries(3)
                .max_retry_wait(100)
                .build()?;
            return Ok(Self(Kind::Cluster(Box::new(Cluster {
                client,
                connection: Arc::default(),
            }))));
        }
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500));
        let address = url.into_connection_info()?;
        let client = redis::Client::open(address.set_tcp_settings(tcp))?;
        let manager = ConnectionManager::new_lazy_with_config(client, config)?;
        Ok(Self(Kind::One(manager)))
    }

    /// Whether commands about keys of different slots may go in one pipeline.
    pub fn is_cluster(&self) -> bool {
        matches!(self.0, Kind::Cluster(_))
    }
}

impl Cluster {
    async fn connection(&self) -> RedisResult<ClusterConnection> {
        let connect = || self.client.get_async_connection();
        self.connection.get_or_try_init(connect).await.cloned()
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.0 {
            Kind::One(manager) => manager.req_packed_command(command),
            Kind::Cluster(cluster) => Box::pin(async move {
                cluster
                    .connection()
                    .await?
                    .req_packed_command(command)
                    .await
            }),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.0 {
            Kind::One(manager) => manager.req_packed_commands(pipeline, offset, count),
            Kind::Cluster(cluster) => Box::pin(async move {
                cluster
                    .connection()
                    .await?
                    .req_packed_commands(pipeline, offset, count)
                    .await
            }),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.0 {
            Kind::One(manager) => manager.get_db(),
            Kind::Cluster(_) => 0, // a cluster has no other
        }
    }
}

/// The nodes that the URL of a cluster names, each as the URL of one Redis; `None` for another URL. The
/// form is that of the subscriber's library, which reads the same setting.
fn cluster_nodes(url: &str) -> Result<Option<Vec<String>>, StoreError> {
    let wrong = || StoreError::Failed("the URL of the cluster is not one".to_owned());
    let Some(rest) = url.strip_prefix("redis-cluster://") else {
        return Ok(None);
    };
    let first = Url::parse(&format!("redis://{rest}")).map_err(|_| wrong())?;
    if first.host_str().is_none_or(str::is_empty) {
        return Err(wrong());
    }
    let mut nodes = Vec::new();
    let mut base = first.clone();
    base.set_query(None);
    nodes.push(base.to_string());
    for (name, node) in first.query_pairs() {
        if name != "node" {
            return Err(wrong());
        }
        let node = Url::parse(&format!("redis://{node}")).map_err(|_| wrong())?;
        let mut other = base.clone();
        other.set_host(node.host_str()).map_err(|_| wrong())?;
        other.set_port(node.port()).map_err(|()| wrong())?;
        nodes.push(other.to_string());
    }
    Ok(Some(nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_of_a_cluster_share_their_credentials() {
        let nodes = |url| cluster_nodes(url).unwrap();
        assert_eq!(nodes("redis://127.0.0.1:6379/"), None);
        let url = "redis-cluster://user:pass@a:7000?node=b:7001&node=10.0.0.3:7002";
        assert_eq!(
            nodes(url).unwrap(),
            [
                "redis://user:pass@a:7000",
                "redis://user:pass@b:7001",
                "redis://user:pass@10.0.0.3:7002"
            ]
        );
        assert!(cluster_nodes("redis-cluster://a:7000?nodes=b:1").is_err());
        assert!(cluster_nodes("redis-cluster://").is_err());
    }
}
