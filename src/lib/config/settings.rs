//! Every setting, declared once.

use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::value::{
    AuditFull, ByteCount, ForwardedHeader, Millis, Origin, Rule, Share, TenantDays, ToolTtl,
};
use super::{ConfigError, RedisSettings, Setting, Source};

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
    /// Redis URL: `redis://user:password@host:port/` names one Redis, `redis-cluster://host:port?node=host:port` nodes of a cluster, `redis-sentinel://host:port?node=host:port&sentinelServiceName=name` sentinels; `rediss` in place of `redis` speaks TLS.
    redis_url: SecretString = "REDIS_URL", "redis://127.0.0.1:6379/", secret;
    /// Prefix of every Redis key, topic, consumer group and channel, so that installations can share a broker and a Redis. Lower-case letters, digits and hyphens; empty for none.
    namespace: String = "AGENTHUB_NAMESPACE", "";
    /// Secrets that sign API keys and Kafka records: `<id>:<base64 of at least 32 bytes>`, comma-separated; the first signs, all verify.
    signing_secrets: SecretString = "AGENTHUB_SIGNING_SECRETS", REQUIRED, secret;
    /// Keys that wrap the sessions' data keys: `<id>:<base64 of 32 bytes>`, comma-separated; the first wraps, all unwrap.
    master_keys: SecretString = "AGENTHUB_MASTER_KEYS", REQUIRED, secret;
    /// PEM file with the certificates of the authorities that Redis' certificate is checked against; those of the machine when empty.
    redis_tls_ca: Option<PathBuf> = "AGENTHUB_REDIS_TLS_CA", "";
    /// PEM file with the client's certificate and its chain, for a Redis that asks for one (mTLS).
    redis_tls_cert: Option<PathBuf> = "AGENTHUB_REDIS_TLS_CERT", "";
    /// PEM file with the private key of that certificate.
    redis_tls_key: Option<PathBuf> = "AGENTHUB_REDIS_TLS_KEY", "";
    /// Replicas that must have each transition of a run before anything follows from it (`WAIT`); 0 waits for none, and a failover may then lose what Kafka has.
    redis_wait_replicas: u32 = "AGENTHUB_REDIS_WAIT_REPLICAS", "0";
    /// How the brokers are spoken to: `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.
    kafka_security_protocol: String = "AGENTHUB_KAFKA_SECURITY_PROTOCOL", "plaintext";
    /// How user and password are shown to the brokers: `SCRAM-SHA-512`, `SCRAM-SHA-256` or `PLAIN`.
    kafka_sasl_mechanism: String = "AGENTHUB_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512";
    /// User at the brokers.
    kafka_sasl_username: String = "AGENTHUB_KAFKA_SASL_USERNAME", "";
    /// Password of that user.
    kafka_sasl_password: SecretString = "AGENTHUB_KAFKA_SASL_PASSWORD", "", secret;
    /// PEM file with the certificates of the authorities that the brokers' certificates are checked against; those of the machine when empty.
    kafka_tls_ca: Option<PathBuf> = "AGENTHUB_KAFKA_TLS_CA", "";
    /// PEM file with the client's certificate and its chain, for brokers that ask for one (mTLS).
    kafka_tls_cert: Option<PathBuf> = "AGENTHUB_KAFKA_TLS_CERT", "";
    /// PEM file with the private key of that certificate.
    kafka_tls_key: Option<PathBuf> = "AGENTHUB_KAFKA_TLS_KEY", "";
    /// Extra librdkafka properties for every client, `name=value`, comma-separated (SASL, TLS, tuning).
    kafka_properties: Vec<String> = "AGENTHUB_KAFKA_PROPERTIES", "", secret;
    /// Rebalance protocol of the consumer groups: `classic` (cooperative-sticky) or `consumer` (KIP-848).
    group_protocol: String = "AGENTHUB_GROUP_PROTOCOL", "classic";
    /// Longest time in milliseconds that a record may wait for its acknowledgement.
    produce_timeout_ms: Millis = "AGENTHUB_PRODUCE_TIMEOUT_MS", "1500";
    /// Milliseconds after which the API takes a Redis that does not answer to be away.
    redis_timeout_ms: Millis = "AGENTHUB_REDIS_TIMEOUT_MS", "400";

    /// Address on which the API listens.
    api_addr: SocketAddr = "AGENTHUB_API_ADDR", "127.0.0.1:8080";
    /// Address on which a worker serves /healthz, /readyz and /metrics; port 0 takes a free one.
    probe_addr: SocketAddr = "AGENTHUB_PROBE_ADDR", "127.0.0.1:0";
    /// PEM file with the API's certificate and its chain; with `AGENTHUB_TLS_KEY` the API speaks TLS (1.2 and 1.3) and nothing else. Both are read again when they change, and on SIGHUP.
    tls_cert: Option<PathBuf> = "AGENTHUB_TLS_CERT", "";
    /// PEM file with the private key of that certificate.
    tls_key: Option<PathBuf> = "AGENTHUB_TLS_KEY", "";
    /// Connections that the API has at once; a further one is answered with 503 and closed.
    max_connections: u32 = "AGENTHUB_MAX_CONNECTIONS", "16384";
    /// Milliseconds within which a request's head must have arrived, from its first byte, or for a connection's first request from the beginning of the connection.
    head_timeout_ms: Millis = "AGENTHUB_HEAD_TIMEOUT_MS", "10000";
    /// Milliseconds that a connection is kept between two requests. Longer than that of a proxy in front.
    idle_timeout_ms: Millis = "AGENTHUB_IDLE_TIMEOUT_MS", "75000";
    /// Milliseconds after which a client that takes nothing of its answer is cut off.
    write_timeout_ms: Millis = "AGENTHUB_WRITE_TIMEOUT_MS", "30000";
    /// Largest request head in bytes: request line and headers.
    max_head_bytes: ByteCount = "AGENTHUB_MAX_HEAD_BYTES", "32768";
    /// Header lines that a request may have.
    max_headers: usize = "AGENTHUB_MAX_HEADERS", "64";
    /// Longest path and query of a request in bytes.
    max_uri_bytes: ByteCount = "AGENTHUB_MAX_URI_BYTES", "8192";
    /// Largest request body in bytes.
    max_body_bytes: ByteCount = "AGENTHUB_MAX_BODY_BYTES", "262144";
    /// Deepest nesting of a JSON request body.
    max_json_depth: usize = "AGENTHUB_MAX_JSON_DEPTH", "32";
    /// Milliseconds within which a request body must have arrived.
    body_timeout_ms: Millis = "AGENTHUB_BODY_TIMEOUT_MS", "10000";
    /// Requests without a valid key that one address (of IPv6 one /64) may send, `<limit>/<window in ms>`; further ones are answered with 429 instead of 401. Counted by each process; no limit when empty.
    unauthenticated_limit: Option<Rule> = "AGENTHUB_UNAUTHENTICATED_LIMIT", "60/60000";
    /// Origins such as `https://console.example.com` whose pages may call the API from a browser (CORS), comma-separated; none when empty.
    cors_origins: Vec<Origin> = "AGENTHUB_CORS_ORIGINS", "";
    /// Proxies whose word on a client's address is taken: addresses or networks such as `10.0.0.0/8`, comma-separated.
    trusted_proxies: Vec<IpNet> = "AGENTHUB_TRUSTED_PROXIES", "";
    /// Header in which these proxies write that address: `x-forwarded-for` or `forwarded` (RFC 7239). The other one is not read.
    forwarded_header: ForwardedHeader = "AGENTHUB_FORWARDED_HEADER", "x-forwarded-for";
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

    /// Audit records of requests that may wait for Kafka in one process; a request that finds no place is refused or only counted.
    audit_buffer: usize = "AGENTHUB_AUDIT_BUFFER", "50000";
    /// What becomes of requests while that buffer is full: `refuse` (503), or `count` (they go on, and are added up by kind instead of recorded one by one).
    audit_full: AuditFull = "AGENTHUB_AUDIT_FULL", "refuse";

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
    /// Further attempts that the steps of one run have together.
    max_run_retries: u32 = "AGENTHUB_MAX_RUN_RETRIES", "30";
    /// Failures in a row that open the circuit breaker of a tool's target, or of a model's endpoint.
    breaker_failures: u32 = "AGENTHUB_BREAKER_FAILURES", "5";
    /// Milliseconds of calls whose share of failures a breaker looks at.
    breaker_window_ms: Millis = "AGENTHUB_BREAKER_WINDOW_MS", "30000";
    /// Calls that this window must hold before their share of failures counts.
    breaker_min_calls: u32 = "AGENTHUB_BREAKER_MIN_CALLS", "20";
    /// Per cent of failures in the window that open a breaker.
    breaker_failure_percent: u32 = "AGENTHUB_BREAKER_FAILURE_PERCENT", "50";
    /// Milliseconds for which a breaker opens first; each time in a row doubles them, up to five minutes.
    breaker_open_ms: Millis = "AGENTHUB_BREAKER_OPEN_MS", "15000";
    /// Calls that pass a half-open breaker at once, over all workers; as many successes close it.
    breaker_probes: u32 = "AGENTHUB_BREAKER_PROBES", "2";
    /// Seconds that a tool's results are kept, `<tool>=<seconds>`, comma-separated, in place of what the tool declares; 0 keeps none.
    cache_ttls: Vec<ToolTtl> = "AGENTHUB_CACHE_TTLS", "";
    /// Seconds that a step may take when its plan gives no `timeout_s`.
    step_timeout_s: u64 = "AGENTHUB_STEP_TIMEOUT_S", "30";

    /// Base URL of the OpenAI-compatible endpoint.
    openai_base_url: String = "OPENAI_BASE_URL", "https://api.openai.com/v1";
    /// API key of that endpoint.
    openai_api_key: SecretString = "OPENAI_API_KEY", "", secret;
    /// Model that plans when the request names none.
    model: String = "AGENTHUB_MODEL", "gpt-4o-mini";
    /// What answers when the model does not, in this order: `<model>@<base URL>`, or `<model>` at the endpoint above, comma-separated.
    llm_fallback: Vec<String> = "AGENTHUB_LLM_FALLBACK", "";
    /// API keys of the fall-back endpoints that have a base URL, in their order, comma-separated; one may be empty.
    llm_fallback_keys: SecretString = "AGENTHUB_LLM_FALLBACK_KEYS", "", secret;
    /// Milliseconds that one model call may take.
    llm_timeout_ms: Millis = "AGENTHUB_LLM_TIMEOUT_MS", "60000";
    /// Most tokens that a model may answer with.
    llm_max_output_tokens: u32 = "AGENTHUB_LLM_MAX_OUTPUT_TOKENS", "4096";
    /// Whether the answers of an agent's model are told while they are written (`llm.delta`).
    llm_stream: bool = "AGENTHUB_LLM_STREAM", "true";
    /// Answers that an agent's model may give in one run.
    max_turns: usize = "AGENTHUB_MAX_TURNS", "16";
    /// Bytes of a tool's output that an agent's model is shown.
    max_shown_bytes: ByteCount = "AGENTHUB_MAX_SHOWN_BYTES", "16384";
    /// File with the prices of models; the built-in list when empty.
    prices_file: Option<PathBuf> = "AGENTHUB_PRICES_FILE", "";

    /// TOML file with tools of yours that are called by HTTP; none when empty. The same for every process.
    tools_file: Option<PathBuf> = "AGENTHUB_TOOLS_FILE", "";
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

    /// Key that signs the audit manifests, `<id>:<base64 of 32 bytes>`: `agenthub audit keygen` makes one. The audit roll-up does not start without it.
    audit_signing_key: SecretString = "AGENTHUB_AUDIT_SIGNING_KEY", "", secret;
    /// Public keys of earlier audit signing keys, `<id>:<base64 of 32 bytes>`, comma-separated: the roll-up goes on from what they signed, and `agenthub audit verify` believes them.
    audit_public_keys: String = "AGENTHUB_AUDIT_PUBLIC_KEYS", "";
    /// Milliseconds between two publications of the audit chains' heads on `audit.logs`.
    audit_head_interval_ms: Millis = "AGENTHUB_AUDIT_HEAD_INTERVAL_MS", "3600000";
    /// Days after which the audit roll-up removes files of audit records; 0 keeps them all.
    audit_retention_days: u32 = "AGENTHUB_AUDIT_RETENTION_DAYS", "0";
    /// Likewise for single tenants, in place of that: `<tenant>=<days>`, comma-separated.
    audit_tenant_retention: Vec<TenantDays> = "AGENTHUB_AUDIT_TENANT_RETENTION_DAYS", "";
    /// Milliseconds between two looks at what is old enough.
    audit_retention_interval_ms: Millis = "AGENTHUB_AUDIT_RETENTION_INTERVAL_MS", "3600000";

    /// What is logged: a level, or `tracing` directives such as `info,agenthub::kafka=debug`. Read again on SIGHUP, from the configuration file or `AGENTHUB_LOG_FILE`.
    log: String = "AGENTHUB_LOG", "info";
    /// Form of the log: `json` or `pretty`.
    log_format: String = "AGENTHUB_LOG_FORMAT", "json";
    /// Tenants that the metrics of a process tell apart by name; the others are counted as `other`.
    metrics_tenants: usize = "AGENTHUB_METRICS_TENANTS", "100";
    /// OTLP endpoint for traces (HTTP, protobuf); no export when empty.
    otlp_endpoint: Option<String> = "OTEL_EXPORTER_OTLP_ENDPOINT", "";
    /// Milliseconds that one export of spans may take; then its spans are dropped.
    otlp_timeout_ms: Millis = "OTEL_EXPORTER_OTLP_TIMEOUT", "5000";
    /// Part of the traces begun here that are kept, from 0 to 1. Whoever sends a `traceparent` has decided for its own trace.
    trace_ratio: Share = "OTEL_TRACES_SAMPLER_ARG", "1";
    /// Ended spans that may wait for their export; further ones are dropped and counted.
    trace_queue: usize = "OTEL_BSP_MAX_QUEUE_SIZE", "8192";
    /// Milliseconds that spans are gathered before an export.
    trace_delay_ms: Millis = "OTEL_BSP_SCHEDULE_DELAY", "1000";
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
        super::check_kafka(self)?;
        RedisSettings::of(self)?;
        self.check_edges()?;
        if !matches!(self.log_format.as_str(), "json" | "pretty") {
            return invalid("AGENTHUB_LOG_FORMAT", "json or pretty");
        }
        self.dlq_webhook()?;
        if self.max_in_flight == 0 {
            return invalid("AGENTHUB_MAX_IN_FLIGHT", "at least 1");
        }
        if self.max_turns == 0 {
            return invalid("AGENTHUB_MAX_TURNS", "at least 1");
        }
        for (name, value) in [
            ("AGENTHUB_BREAKER_FAILURES", self.breaker_failures),
            ("AGENTHUB_BREAKER_MIN_CALLS", self.breaker_min_calls),
            ("AGENTHUB_BREAKER_PROBES", self.breaker_probes),
        ] {
            if value == 0 {
                return invalid(name, "at least 1");
            }
        }
        if !(1..=100).contains(&self.breaker_failure_percent) {
            return invalid("AGENTHUB_BREAKER_FAILURE_PERCENT", "1 to 100");
        }
        if !(100..=86_400_000).contains(&self.breaker_open_ms.0) {
            return invalid("AGENTHUB_BREAKER_OPEN_MS", "100 to 86400000");
        }
        if !(100..=86_400_000).contains(&self.breaker_window_ms.0) {
            return invalid("AGENTHUB_BREAKER_WINDOW_MS", "100 to 86400000");
        }
        if !(1..=1 << 20).contains(&self.trace_queue) {
            return invalid("OTEL_BSP_MAX_QUEUE_SIZE", "1 to 1048576");
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

    /// What the API's connections are bounded by.
    fn check_edges(&self) -> Result<(), ConfigError> {
        let invalid = |name, expected: String| Err(ConfigError::Invalid { name, expected });
        let within = |name, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            invalid(name, format!("{least} to {most}"))
        };
        let head = self.max_head_bytes.0;
        within("AGENTHUB_MAX_HEAD_BYTES", head, 8192, 1 << 20)?;
        within("AGENTHUB_MAX_URI_BYTES", self.max_uri_bytes.0, 256, 65_534)?;
        within("AGENTHUB_MAX_HEADERS", self.max_headers, 8, 1000)?;
        let connections = self.max_connections.try_into().unwrap_or(usize::MAX);
        within("AGENTHUB_MAX_CONNECTIONS", connections, 1, 1 << 20)?;
        for (name, time) in [
            ("AGENTHUB_HEAD_TIMEOUT_MS", self.head_timeout_ms),
            ("AGENTHUB_IDLE_TIMEOUT_MS", self.idle_timeout_ms),
            ("AGENTHUB_WRITE_TIMEOUT_MS", self.write_timeout_ms),
            ("AGENTHUB_BODY_TIMEOUT_MS", self.body_timeout_ms),
            ("AGENTHUB_REDIS_TIMEOUT_MS", self.redis_timeout_ms),
        ] {
            if !(1..=3_600_000).contains(&time.0) {
                return invalid(name, "1 to 3600000".to_owned());
            }
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => invalid(
                "AGENTHUB_TLS_KEY",
                "a file, as AGENTHUB_TLS_CERT is given".to_owned(),
            ),
            (None, Some(_)) => invalid(
                "AGENTHUB_TLS_CERT",
                "a file, as AGENTHUB_TLS_KEY is given".to_owned(),
            ),
            _ => Ok(()),
        }
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
