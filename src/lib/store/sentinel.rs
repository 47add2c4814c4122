//! The connection to the master that sentinels name, whichever it is at the moment.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisError, RedisResult, TlsMode, Value};
use secrecy::ExposeSecret;

use super::StoreError;
use super::connection::{addresses, certificates, tcp};
use crate::config::{RedisKind, RedisSettings};

/// Everyone who needs the connection drives the one attempt to make it: whoever gives up waiting leaves it
/// to the next, and does not begin anew.
type Attempt = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// A connection that is made by asking the sentinels, and made again by asking them when it breaks or
/// when the other end turns out not to be the master.
pub(super) struct Sentinel {
    client: Arc<tokio::sync::Mutex<SentinelClient>>,
    config: AsyncConnectionConfig,
    current: Mutex<Option<Attempt>>,
    database: i64,
}

impl Sentinel {
    pub(super) fn new(settings: &RedisSettings, timeout: Duration) -> Result<Self, StoreError> {
        let RedisKind::Sentinel {
            service,
            username,
            password,
        } = &settings.kind
        else {
            return Err(StoreError::Failed("no sentinel is named".to_owned()));
        };
        let database = i64::from(settings.database);
        let master = SentinelServerType::Master;
        let mut builder = SentinelClientBuilder::new(addresses(settings), service, master)?
            .set_client_to_redis_db(database)
            .set_client_to_redis_tcp_settings(tcp())
            .set_client_to_sentinel_tcp_settings(tcp());
        if let Some(username) = &settings.username {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = &settings.password {
            builder = builder.set_client_to_redis_password(password.expose_secret());
        }
        if let Some(username) = username {
            builder = builder.set_client_to_sentinel_username(username);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_sentinel_password(password.expose_secret());
        }
        if let Some(tls) = &settings.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            if let Some(certificates) = certificates(tls) {
                builder = builder
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates);
            }
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        Ok(Self {
            client: Arc::new(tokio::sync::Mutex::new(builder.build()?)),
            config,
            current: Mutex::default(),
            database,
        })
    }

    pub(super) fn database(&self) -> i64 {
        self.database
    }

    pub(super) async fn command(&self, command: &Cmd) -> RedisResult<Value> {
        let attempt = self.attempt();
        let outcome = match attempt.clone().await {
            Ok(mut connection) => connection.req_packed_command(command).await,
            Err(error) => Err(error),
        };
        let left = match &outcome {
            Ok(value) => told_by_no_master(value),
            Err(error) => leaves(error),
        };
        if left {
            self.leave(&attempt);
        }
        outcome
    }

    pub(super) async fn commands(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let attempt = self.attempt();
        let outcome = match attempt.clone().await {
            Ok(mut connection) => {
                connection
                    .req_packed_commands(pipeline, offset, count)
                    .await
            }
            Err(error) => Err(error),
        };
        let left = match &outcome {
            Ok(values) => values.iter().any(told_by_no_master),
            Err(error) => leaves(error),
        };
        if left {
            self.leave(&attempt);
        }
        outcome
    }

    /// The connection, or the attempt to make it.
    fn attempt(&self) -> Attempt {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || {
            let (client, config) = (self.client.clone(), self.config.clone());
            let connect = async move {
                let mut client = client.lock().await;
                client.get_async_connection_with_config(&config).await
            };
            connect.boxed().shared()
        };
        current.get_or_insert_with(begin).clone()
    }

    /// The next command asks the sentinels again, unless another has seen to it.
    fn leave(&self, attempt: &Attempt) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|now| now.ptr_eq(attempt)) {
            *current = None;
        }
    }
}

/// Whether the connection, or the attempt to make one, is of no further use.
fn leaves(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            redis::ErrorKind::MasterNameNotFoundBySentinel | redis::ErrorKind::InvalidClientConfig
        )
        || error.code().is_some_and(no_masters_code)
}

fn told_by_no_master(value: &Value) -> bool {
    match value {
        Value::ServerError(error) => no_masters_code(error.code()),
        Value::Array(values) => values.iter().any(told_by_no_master),
        _ => false,
    }
}

/// What a former master answers that has become a replica.
fn no_masters_code(code: &str) -> bool {
    matches!(code, "READONLY" | "MASTERDOWN" | "LOADING")
}
