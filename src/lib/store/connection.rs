//! The connection: to one Redis, to a cluster, or to the master that sentinels name.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisFuture, RedisResult, TlsCertificates, Value,
};
use secrecy::ExposeSecret;
use tokio::sync::OnceCell;

use super::StoreError;
use super::sentinel::Sentinel;
use crate::config::{RedisKind, RedisSettings, RedisTls};

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
    Sentinel(Arc<Sentinel>),
}

/// A connection to a cluster, made when it is first needed: unlike that to one Redis it cannot be made
/// without asking the cluster for its slots.
#[derive(Clone)]
struct Cluster {
    client: ClusterClient,
    connection: Arc<OnceCell<ClusterConnection>>,
}

impl Connection {
    /// Each command ends within `timeout`, whatever Redis does.
    pub(super) fn new(settings: &RedisSettings, timeout: Duration) -> Result<Self, StoreError> {
        let kind = match &settings.kind {
            RedisKind::One => Kind::One(one(settings, timeout)?),
            RedisKind::Cluster => Kind::Cluster(Box::new(Cluster::new(settings, timeout)?)),
            RedisKind::Sentinel { .. } => {
                Kind::Sentinel(Arc::new(Sentinel::new(settings, timeout)?))
            }
        };
        Ok(Self(kind))
    }

    /// Whether commands about keys of different slots may go in one pipeline.
    pub fn is_cluster(&self) -> bool {
        matches!(self.0, Kind::Cluster(_))
    }
}

fn one(settings: &RedisSettings, timeout: Duration) -> Result<ConnectionManager, StoreError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout))
        .set_number_of_retries(1)
        .set_max_delay(Duration::from_millis(500));
    let [info, ..] = &infos(settings)?[..] else {
        return Err(StoreError::Failed("no node is named".to_owned()));
    };
    let client = match settings.tls.as_ref().and_then(certificates) {
        Some(certificates) => redis::Client::build_with_tls(info.clone(), certificates)?,
        None => redis::Client::open(info.clone())?,
    };
    Ok(ConnectionManager::new_lazy_with_config(client, config)?)
}

impl Cluster {
    fn new(settings: &RedisSettings, timeout: Duration) -> Result<Self, StoreError> {
        let mut builder = ClusterClientBuilder::new(infos(settings)?)
            .connection_timeout(timeout)
            .response_timeout(timeout)
            .overall_response_timeout(Some(timeout))
            .tcp_settings(tcp())
            .retries(3)
            .max_retry_wait(100);
        if let Some(certificates) = settings.tls.as_ref().and_then(certificates) {
            builder = builder.certs(certificates);
        }
        Ok(Self {
            client: builder.build()?,
            connection: Arc::default(),
        })
    }

    async fn connection(&self) -> RedisResult<ClusterConnection> {
        let connect = || self.client.get_async_connection();
        self.connection.get_or_try_init(connect).await.cloned()
    }
}

pub(super) fn tcp() -> TcpSettings {
    TcpSettings::default()
        .set_nodelay(true)
        .set_user_timeout(SILENCE)
}

/// What the library is told of each node.
fn infos(settings: &RedisSettings) -> RedisResult<Vec<ConnectionInfo>> {
    let info = |address: ConnectionAddr| {
        let info = address.into_connection_info()?.set_tcp_settings(tcp());
        let mut redis = info.redis_settings().clone();
        redis = redis.set_db(i64::from(settings.database));
        if let Some(username) = &settings.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = &settings.password {
            redis = redis.set_password(password.expose_secret());
        }
        Ok(info.set_redis_settings(redis))
    };
    addresses(settings).into_iter().map(info).collect()
}

pub(super) fn addresses(settings: &RedisSettings) -> Vec<ConnectionAddr> {
    let address = |(host, port): &(String, u16)| match settings.tls {
        None => ConnectionAddr::Tcp(host.clone(), *port),
        Some(_) => ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure: false,
            tls_params: None,
        },
    };
    settings.nodes.iter().map(address).collect()
}

/// `None` where the machine's own authorities are believed and no certificate is shown.
pub(super) fn certificates(tls: &RedisTls) -> Option<TlsCertificates> {
    let ca = tls.ca.clone()?;
    let identity = tls.identity.as_ref().map(|(cert, key)| ClientTlsConfig {
        client_cert: cert.clone(),
        client_key: key.expose_secret().to_vec(),
    });
    Some(TlsCertificates {
        client_tls: identity,
        root_cert: Some(ca),
    })
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
            Kind::Sentinel(sentinel) => Box::pin(sentinel.command(command)),
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
            Kind::Sentinel(sentinel) => Box::pin(sentinel.commands(pipeline, offset, count)),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.0 {
            Kind::One(manager) => manager.get_db(),
            Kind::Sentinel(sentinel) => sentinel.database(),
            Kind::Cluster(_) => 0, // a cluster has no other
        }
    }
}
