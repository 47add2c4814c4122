//! Every setting, declared once.

use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::value::{ByteCount, Millis, Rule};
use super::{ConfigError, Setting, Source};

/// The default of a setting that has none.
pub(super) const REQUIRED: &str = "\0required";

/// Variables that belong to clients of the API and to scripts, not to the processes.
pub(super) const FOR_CLIENTS: &[&str] = &[
    "AGENTHUB_URL",
    "AGENTHUB_API_KEY",
    "AGENTHUB_ADMIN_KEY",
    "AGENTHUB_CLIENT_KEY",
    "AGENTHUB_BIN",
];

macro_rules! settings {
    ($( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $env:literal, $default:expr $(, $secret:ident)?; )+) => {
        /// The configuration of a process.
        #[derive(Debug, Clone)]
        #[allow(clippy::struct_excessive_bools)] // each is a switch of its own
        pub struct Settings {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        /// Every setting, in the order of the reference page.
        pub static REFERENCE: &[Setting] = &[
            $( Setting {
                env: $env,
                default: $default,
                doc: concat!($($doc),+).trim_ascii(),
                secret: settings!(@secret $($secret)?),
            }, )+
        ];

        impl Settings {
            /// Parses and checks every setting.
            pub fn load(source: &Source) -> Result<Self, ConfigError> {
                let mut reference = REFERENCE.iter();
                // The struct and `REFERENCE` come from one list, in one order.
                let mut next = || reference.next().unwrap_or(&REFERENCE[0]);
                let settings = Self { $( $field: source.get(next())?, )+ };
                settings.check()?;
                Ok(settings)
            }
        }
    };
    (@secret secret) => { true };
    (@secret) => { false };
}

settings! {
    /// Kafka bootstrap servers, comma-separated.
    kafka_brokers: String = "KAFKA_BROKERS", "127.0.0.1:9092";
    /// Redis URL.
    redis_url: SecretString = "REDIS_URL", "redis://127.0.0.1:6379/", secret;
    /// Prefix of every Redis key, topic, consumer group and channel, so that installations can share a broker and a Redis. Lower-case letters, digits and hyphens; empty for none.
    namespace: String = "AGENTHUB_NAMESPACE", "";
    /// Secrets that sign API keys and Kafka records: `<id>:<base64 of at least 32 bytes>`, comma-separated; the first signs, all verify.
    signing_secrets: SecretString = "AGENTHUB_SIGNING_SECRETS", REQUIRED, secret;
    /// Keys that wrap the sessions' data keys: `<id>:<base64 of 32 bytes>`, comma-separated; the first wraps, all unwrap.
    master_keys: SecretString = "AGENTHUB_MASTER_KEYS", REQUIRED, secret;
    /// Extra librdkafka properties for every client, `name=value`, comma-separated (SASL, TLS, tuning).
    kafka_properties: Vec<String> = "AGENTHUB_KAFKA_PROPERTIES", "", secret;
    /// Rebalance protocol of the consumer groups: `classic` (cooperative-sticky) or `consumer` (KIP-848).
    group_protocol: String = "AGENTHUB_GROUP_PROTOCOL", "classic";
    /// Longest time in milliseconds that a record may wait for its acknowledgement.
    produce_timeout_ms: Millis = "AGENTHUB_PRODUCE_TIMEOUT_MS", "1500";

    /// Address on which the API listens.
    api_addr: SocketAddr = "AGENTHUB_API_ADDR", "127.0.0.1:8080";
    /// Address on which a worker serves /healthz, /readyz and /metrics; port 0 takes a free one.
    probe_addr: SocketAddr = "AGENTHUB_PROBE_ADDR", "127.0.0.1:0";
    /// Largest request body in bytes.
    max_body_bytes: ByteCount = "AGENTHUB_MAX_BODY_BYTES", "262144";
    /// Deepest nesting of a JSON request body.
    max_json_depth: usize = "AGENTHUB_MAX_JSON_DEPTH", "32";
    /// Milliseconds within which a request body must have arrived.
    body_timeout_ms: Millis = "AGENTHUB_BODY_TIMEOUT_MS", "10000";
    /// Milliseconds between two heartbeats of an SSE stream.
    sse_heartbeat_ms: Millis = "AGENTHUB_SSE_HEARTBEAT_MS", "15000";
    /// Events of one session that its history keeps.
    history_events: u32 = "AGENTHUB_HISTORY_EVENTS", "10000";
    /// Time to live of a session in seconds, when its creation gives none; a read extends it.
    session_ttl_s: u64 = "AGENTHUB_SESSION_TTL_S", "86400";
    /// Seconds that the record of a finished run is kept.
    run_retention_s: u64 = "AGENTHUB_RUN_RETENTION_S", "604800";
    /// Seconds that an Idempotency-Key is remembered.
    idempotency_ttl_s: u64 = "AGENTHUB_IDEMPOTENCY_TTL_S", "86400";
    /// Rate limits of a key that has none of its own.
    key_limits: Vec<Rule> = "AGENTHUB_KEY_LIMITS", "100/1000,3000/60000";
    /// Rate limits of a tenant that has none of its own.
    tenant_limits: Vec<Rule> = "AGENTHUB_TENANT_LIMITS", "1000/1000";
    /// Runs of one tenant that may be live at once; the others wait their turn.
    max_live_runs: u32 = "AGENTHUB_MAX_LIVE_RUNS", "10000";

    /// Runs that one worker handles at once.
    max_in_flight: usize = "AGENTHUB_MAX_IN_FLIGHT", "256";
    /// Milliseconds that a worker owns a run without renewing its lease.
    lease_ms: Millis = "AGENTHUB_LEASE_MS", "10000";
    /// Times that a command may be taken up without progress before it is a dead letter.
    max_deliveries: u32 = "AGENTHUB_MAX_DELIVERIES", "5";
    /// Milliseconds between two looks of the sweeper at the due timers.
    sweep_interval_ms: Millis = "AGENTHUB_SWEEP_INTERVAL_MS", "250";
    /// Milliseconds after which a record that is still in an outbox is produced again.
    outbox_retry_ms: Millis = "AGENTHUB_OUTBOX_RETRY_MS", "3000";
    /// Milliseconds that a process may take to end its work when it is told to stop.
    drain_ms: Millis = "AGENTHUB_DRAIN_MS", "10000";
    /// Seconds that a run may take when the request gives no `timeout_s`.
    run_timeout_s: u64 = "AGENTHUB_RUN_TIMEOUT_S", "600";
    /// Largest `timeout_s` of a run.
    max_run_timeout_s: u64 = "AGENTHUB_MAX_RUN_TIMEOUT_S", "86400";
    /// Steps that a plan may have.
    max_steps: usize = "AGENTHUB_MAX_STEPS", "32";
    /// Longest chain of dependencies in a plan.
    max_plan_depth: usize = "AGENTHUB_MAX_PLAN_DEPTH", "16";
    /// Bytes that the arguments of one step may have.
    max_args_bytes: ByteCount = "AGENTHUB_MAX_ARGS_BYTES", "65536";
    /// Bytes of a step's output that are kept.
    max_output_bytes: ByteCount = "AGENTHUB_MAX_OUTPUT_BYTES", "262144";
    /// Attempts that a step has when its failure is transient.
    max_attempts: u32 = "AGENTHUB_MAX_ATTEMPTS", "4";
    /// Seconds that a step may take when its plan gives no `timeout_s`.
    step_timeout_s: u64 = "AGENTHUB_STEP_TIMEOUT_S", "30";

    /// Base URL of the OpenAI-compatible endpoint.
    openai_base_url: String = "OPENAI_BASE_URL", "https://api.openai.com/v1";
    /// API key of that endpoint.
    openai_api_key: SecretString = "OPENAI_API_KEY", "", secret;
    /// Model that plans when the request names none.
    model: String = "AGENTHUB_MODEL", "gpt-4o-mini";
    /// Milliseconds that one model call may take.
    llm_timeout_ms: Millis = "AGENTHUB_LLM_TIMEOUT_MS", "60000";
    /// Most tokens that a model may answer with.
    llm_max_output_tokens: u32 = "AGENTHUB_LLM_MAX_OUTPUT_TOKENS", "4096";
    /// File with the prices of models; the built-in list when empty.
    prices_file: Option<PathBuf> = "AGENTHUB_PRICES_FILE", "";

    /// Hosts (`host` or `host:port`) that tools may fetch although their addresses are not global.
    fetch_allow: Vec<String> = "AGENTHUB_FETCH_ALLOW", "";
    /// Bytes of a fetched page that are read at most.
    fetch_max_bytes: ByteCount = "AGENTHUB_FETCH_MAX_BYTES", "2097152";
    /// Milliseconds that one fetch may take, redirects included.
    fetch_timeout_ms: Millis = "AGENTHUB_FETCH_TIMEOUT_MS", "10000";
    /// Where documents and audit files are kept: a folder, or `s3://bucket/prefix`.
    storage_url: String = "AGENTHUB_STORAGE_URL", ".agenthub/storage";
    /// Endpoint of an S3-compatible store; Amazon's own when empty.
    aws_endpoint_url: Option<String> = "AWS_ENDPOINT_URL", "";
    /// Region of the bucket.
    aws_region: String = "AWS_REGION", "us-east-1";
    /// Access key of the bucket; when empty, the credentials of the machine's or pod's role are asked for.
    aws_access_key_id: String = "AWS_ACCESS_KEY_ID", "";
    /// Secret of that access key.
    aws_secret_access_key: SecretString = "AWS_SECRET_ACCESS_KEY", "", secret;
    /// Session token of a temporary access key.
    aws_session_token: SecretString = "AWS_SESSION_TOKEN", "", secret;
    /// Whether the endpoint may be plain HTTP.
    aws_allow_http: bool = "AWS_ALLOW_HTTP", "false";
    /// Folder for what a process can make again, such as search indexes.
    cache_dir: PathBuf = "AGENTHUB_CACHE_DIR", ".agenthub/cache";
    /// Milliseconds between two looks at the corpus for changes.
    docs_refresh_ms: Millis = "AGENTHUB_DOCS_REFRESH_MS", "2000";
    /// Further regular expressions whose matches are masked, one a line.
    mask_patterns_file: Option<PathBuf> = "AGENTHUB_MASK_PATTERNS_FILE", "";

    /// Records after which the audit roll-up writes a file.
    rollup_max_records: usize = "AGENTHUB_ROLLUP_MAX_RECORDS", "50000";
    /// Milliseconds after which the audit roll-up writes what it has.
    rollup_max_age_ms: Millis = "AGENTHUB_ROLLUP_MAX_AGE_MS", "60000";

    /// Where alerts about dead letters are posted, signed as Standard Webhooks are; none when empty.
    dlq_webhook_url: Option<SecretString> = "AGENTHUB_DLQ_WEBHOOK_URL", "", secret;
    /// Secret that signs these alerts: `whsec_` and base64 of 24 to 64 bytes; required with the address.
    dlq_webhook_secret: SecretString = "AGENTHUB_DLQ_WEBHOOK_SECRET", "", secret;
    /// Milliseconds within which equal failures make one alert.
    dlq_webhook_window_ms: Millis = "AGENTHUB_DLQ_WEBHOOK_WINDOW_MS", "300000";

    /// What is logged: a level, or `tracing` directives.
    log: String = "AGENTHUB_LOG", "info";
    /// Form of the log: `json` or `pretty`.
    log_format: String = "AGENTHUB_LOG_FORMAT", "json";
    /// OTLP endpoint for traces (HTTP, protobuf); no export when empty.
    otlp_endpoint: Option<String> = "OTEL_EXPORTER_OTLP_ENDPOINT", "";
}

impl Settings {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |name, expected: &str| {
            Err(ConfigError::Invalid {
                name,
                expected: expected.to_owned(),
            })
        };
        check_namespace(&self.namespace)?;
        check_group_protocol(&self.group_protocol)?;
        if !matches!(self.log_format.as_str(), "json" | "pretty") {
            return invalid("AGENTHUB_LOG_FORMAT", "json or pretty");
        }
        self.dlq_webhook()?;
        if self.max_in_flight == 0 {
            return invalid("AGENTHUB_MAX_IN_FLIGHT", "at least 1");
        }
        if self.lease_ms.0 < 1000 {
            return invalid("AGENTHUB_LEASE_MS", "at least 1000");
        }
        Ok(())
    }
}

impl Settings {
    /// Where alerts about dead letters go, and the secret that signs them.
    pub fn dlq_webhook(&self) -> Result<Option<(Url, Vec<u8>)>, ConfigError> {
        let invalid = |name, expected: &str| ConfigError::Invalid {
            name,
            expected: expected.to_owned(),
        };
        let Some(url) = &self.dlq_webhook_url else {
            return Ok(None);
        };
        let url = url.expose_secret().parse::<Url>().ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.ok_or_else(|| invalid("AGENTHUB_DLQ_WEBHOOK_URL", "an http or https URL"))?;
        let secret = self.dlq_webhook_secret.expose_secret();
        let secret = secret
            .strip_prefix("whsec_")
            .and_then(|text| STANDARD.decode(text).ok());
        let secret = secret.filter(|secret| (24..=64).contains(&secret.len()));
        let secret = secret.ok_or_else(|| {
            invalid(
                "AGENTHUB_DLQ_WEBHOOK_SECRET",
                "whsec_ and base64 of 24 to 64 bytes",
            )
        })?;
        Ok(Some((url, secret)))
    }
}

/// Whether a text can be the prefix of topics, groups, keys and channels.
pub(crate) fn check_namespace(namespace: &str) -> Result<(), ConfigError> {
    let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if namespace.bytes().all(label) && namespace.len() <= 63 {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        name: "AGENTHUB_NAMESPACE",
        expected: "at most 63 lower-case letters, digits and hyphens".to_owned(),
    })
}

/// Whether a text names a rebalance protocol.
pub(crate) fn check_group_protocol(protocol: &str) -> Result<(), ConfigError> {
    if matches!(protocol, "classic" | "consumer") {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        name: "AGENTHUB_GROUP_PROTOCOL",
        expected: "classic or consumer".to_owned(),
    })
}
