//! An installation of its own: real processes on the shared broker and Redis, in one namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use agenthub::config::{Settings, Source};
use agenthub::governance::{Keys, NewKey, Role};
use agenthub::ids::TenantId;
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::{KafkaSettings, Producer};
use agenthub::messages::{KeyPolicy, Signer};
use agenthub::store::Redis;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::sse::{Follow, Frame};
use super::{SIGNING, environment, eventually, namespace, reaper};

/// One process. It is killed when this is dropped.
pub struct Process {
    child: Child,
    /// Its log, and where in it this process begins.
    log: (PathBuf, u64),
    pub addr: String,
}

impl Process {
    /// Ends it at once, as the kernel does when memory runs out.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        reaper::ended(&self.child);
    }

    /// Tells it to stop.
    pub fn tell_to_stop(&self) {
        self.signal("TERM");
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.child.id().to_string());
        let told = Command::new("kill").args([&signal, &pid]).status();
        assert!(told.unwrap().success());
    }

    /// Waits until it has stopped; whether in order.
    pub async fn stopped(&mut self) -> bool {
        self.exit_code().await == Some(0)
    }

    /// Waits until it has stopped; its exit code.
    pub async fn exit_code(&mut self) -> Option<i32> {
        let status = eventually("the process ends", || {
            std::future::ready(self.child.try_wait().unwrap())
        })
        .await;
        reaper::ended(&self.child);
        status.code()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        let mut file = File::open(&self.log.0).unwrap();
        file.seek(SeekFrom::Start(self.log.1)).unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The address that it says it listens on.
    fn listens_on(&self) -> Option<String> {
        let log = self.log();
        let after = |name: &str| log.split_once(name).map(|(_, rest)| rest.to_owned());
        let rest = after("\"listening\":\"").or_else(|| after("\"addr\":\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// An installation.
pub struct Stack {
    pub namespace: String,
    pub tenant: TenantId,
    pub http: Client,
    environment: BTreeMap<String, String>,
    pub processes: BTreeMap<String, Process>,
    pub api_key: String,
    pub admin_key: String,
}

/// The address of [`allowing`]'s one page on the address that is refused otherwise.
pub static ALLOWED_PAGE: LazyLock<std::net::TcpListener> =
    LazyLock::new(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());

/// An installation with the defaults, for tests that leave it as it is.
pub async fn shared() -> &'static Stack {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    STACK.get_or_init(|| Stack::start(&[])).await
}

/// As [`shared`], with executors that may fetch from [`Web`](super::web::Web) and [`ALLOWED_PAGE`].
pub async fn allowing() -> &'static Stack {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    let page = ALLOWED_PAGE.local_addr().unwrap();
    let allow = format!("127.0.0.2,{page}");
    STACK
        .get_or_init(|| async { Stack::start(&[("AGENTHUB_FETCH_ALLOW", &allow)]).await })
        .await
}

impl Stack {
    /// With API, planner, executor and simulator.
    pub async fn start(extra: &[(&str, &str)]) -> Self {
        let mut stack = Self::bare(extra).await;
        stack.spawn_simulator(&[]).await;
        stack.spawn_all(&["api", "planner", "executor"]).await;
        stack
    }

    /// Topics and keys, and no process.
    pub async fn bare(extra: &[(&str, &str)]) -> Self {
        Self::with_topics(namespace(), extra, Catalogue::embedded(true).unwrap())
            .await
            .with_keys()
            .await
    }

    /// As [`Stack::bare`], with topics that are replicated as they are where it matters.
    pub async fn replicated(extra: &[(&str, &str)]) -> Self {
        Self::with_topics(namespace(), extra, Catalogue::embedded(false).unwrap())
            .await
            .with_keys()
            .await
    }

    /// Topics in a namespace, and neither key nor process.
    pub async fn empty(namespace: String, extra: &[(&str, &str)]) -> Self {
        Self::with_topics(namespace, extra, Catalogue::embedded(true).unwrap()).await
    }

    async fn with_keys(mut self) -> Self {
        let keys = self.keys();
        self.api_key = mint(&keys, &self.tenant, Role::Client).await;
        self.admin_key = mint(&keys, &self.tenant, Role::Admin).await;
        self
    }

    async fn with_topics(namespace: String, extra: &[(&str, &str)], catalogue: Catalogue) -> Self {
        let folder = std::env::temp_dir().join(&namespace);
        let mut environment = environment(&namespace, extra);
        let mut default = |name: &str, value: String| {
            environment.entry(name.to_owned()).or_insert(value);
        };
        default(
            "AGENTHUB_STORAGE_URL",
            folder.join("storage").to_str().unwrap().to_owned(),
        );
        default(
            "AGENTHUB_CACHE_DIR",
            folder.join("cache").to_str().unwrap().to_owned(),
        );
        default("AGENTHUB_LOG", "info".to_owned());
        // Tests look again and again; those of the limits set their own.
        default("AGENTHUB_KEY_LIMITS", "100000/1000".to_owned());
        default("AGENTHUB_TENANT_LIMITS", "100000/1000".to_owned());
        default("AGENTHUB_UNAUTHENTICATED_LIMIT", "100000/1000".to_owned());
        // A busy machine is no outage.
        default("AGENTHUB_REDIS_TIMEOUT_MS", "2000".to_owned());
        // Each process takes a free port, and logs which.
        default("AGENTHUB_API_ADDR", "127.0.0.1:0".to_owned());
        default("AGENTHUB_PROBE_ADDR", "127.0.0.1:0".to_owned());
        let stack = Self {
            namespace,
            tenant: "acme".parse().unwrap(),
            // An idle connection belongs to the runtime of one test, and a stack may be shared.
            http: Client::builder()
                .no_proxy()
                .pool_max_idle_per_host(0)
                .build()
                .unwrap(),
            environment,
            processes: BTreeMap::new(),
            api_key: String::new(),
            admin_key: String::new(),
        };
        let kafka = stack.kafka();
        Admin::new(&kafka)
            .unwrap()
            .apply(&catalogue, false)
            .await
            .unwrap();
        stack
    }

    pub fn keys(&self) -> Keys {
        let signer = Signer::parse(SIGNING).unwrap();
        // A broker that has just started takes its time for the first record.
        let mut kafka = self.kafka();
        kafka.produce_timeout = Duration::from_secs(10);
        let producer = Producer::new(&kafka, signer.clone(), "test").unwrap();
        Keys::new(self.redis(), producer, signer)
    }

    pub fn kafka(&self) -> KafkaSettings {
        KafkaSettings::from(&self.settings())
    }

    pub fn redis(&self) -> Redis {
        Redis::connect(&self.settings(), Duration::from_secs(5)).unwrap()
    }

    /// The settings of its processes: some tests have a broker or a Redis of their own.
    fn settings(&self) -> Settings {
        Settings::load(&Source::from_env(self.environment.clone()).unwrap()).unwrap()
    }

    /// Starts the simulator, and makes it the installation's model.
    pub async fn spawn_simulator(&mut self, args: &[&str]) {
        let mut all = vec!["--addr", "127.0.0.1:0"];
        all.extend(args);
        self.spawn("llm-sim", env!("CARGO_BIN_EXE_agenthub-llm-sim"), &all);
        self.until_ready("llm-sim").await;
        let addr = self.processes["llm-sim"].addr.clone();
        self.set("OPENAI_BASE_URL", &format!("http://{addr}/v1"));
        self.set("OPENAI_API_KEY", "simulated");
    }

    /// Starts processes by the names of their binaries, without `agenthub-`, and waits for them. A
    /// suffix such as `-2` makes another one.
    pub async fn spawn_all(&mut self, names: &[&str]) {
        for name in names {
            self.begin(name);
        }
        for name in names {
            self.until_ready(name).await;
        }
    }

    /// Starts a process and does not wait for it.
    pub fn begin(&mut self, name: &str) {
        self.begin_with(name, &[]);
    }

    /// As [`Stack::begin`], with arguments.
    pub fn begin_with(&mut self, name: &str, args: &[&str]) {
        let binary = match name.split('-').next().unwrap() {
            "api" => env!("CARGO_BIN_EXE_agenthub-api"),
            "planner" => env!("CARGO_BIN_EXE_agenthub-planner"),
            "executor" => env!("CARGO_BIN_EXE_agenthub-executor"),
            "audit" => env!("CARGO_BIN_EXE_agenthub-audit-rollup"),
            "dlq" => env!("CARGO_BIN_EXE_agenthub-dlq"),
            other => panic!("no process {other}"),
        };
        self.spawn(name, binary, args);
    }

    fn spawn(&mut self, name: &str, binary: &str, args: &[&str]) {
        let path = std::env::temp_dir().join(format!("{}-{name}.log", self.namespace));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.unwrap();
        let begins = log.metadata().unwrap().len();
        let child = Command::new(binary)
            .args(args)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        reaper::started(&child);
        let process = Process {
            child,
            log: (path, begins),
            addr: String::new(),
        };
        self.processes.insert(name.to_owned(), process);
    }

    /// Waits until a process listens.
    pub async fn until_listening(&mut self, name: &str) {
        let process = self.processes.get_mut(name).unwrap();
        process.addr = eventually(&format!("{name} listens"), || {
            assert_eq!(process.child.try_wait().unwrap(), None, "{}", process.log());
            std::future::ready(process.listens_on())
        })
        .await;
    }

    /// Waits until a process is ready.
    pub async fn until_ready(&mut self, name: &str) {
        self.until_listening(name).await;
        let url = format!("http://{}/readyz", self.processes[name].addr);
        eventually(&format!("{name} is ready"), async || {
            let answer = self.http.get(&url).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Runs the command line in this installation; what it printed.
    pub async fn command(&self, args: &[&str]) -> String {
        let output = self.run_command(args).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// As [`Stack::command`], for what must fail; what it said.
    pub async fn refused_command(&self, args: &[&str]) -> String {
        let output = self.run_command(args).await;
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    async fn run_command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agenthub"));
        command.args(args).env_clear().envs(&self.environment);
        let output = tokio::task::spawn_blocking(move || command.output());
        output.await.unwrap().unwrap()
    }

    /// Runs the command line as a client of this installation; what it printed.
    pub async fn client_command(&self, args: &[&str]) -> String {
        self.command_with(&self.api_key, args).await
    }

    /// As [`Stack::client_command`], with a key.
    pub async fn command_with(&self, key: &str, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agenthub"));
        command
            .args(args)
            .env_clear()
            .env("AGENTHUB_URL", self.url(""))
            .env("AGENTHUB_API_KEY", key);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sets a variable for processes started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Leaves a variable out for processes started from now on.
    pub fn unset(&mut self, name: &str) {
        self.environment.remove(name);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.processes["api"].addr)
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, self.url(path))
            .bearer_auth(&self.api_key)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        body(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, json: &Value) -> (StatusCode, Value) {
        body(
            self.request(Method::POST, path)
                .json(json)
                .send()
                .await
                .unwrap(),
        )
        .await
    }

    /// Asks for a run's end.
    pub async fn cancel(&self, run: &str, mode: &str) -> (StatusCode, Value) {
        self.post(&format!("/v1/runs/{run}/cancel"), &json!({ "mode": mode }))
            .await
    }

    pub async fn session(&self) -> String {
        let (status, session) = self.post("/v1/sessions", &json!({})).await;
        assert_eq!(status, StatusCode::CREATED, "{session}");
        session["session_id"].as_str().unwrap().to_owned()
    }

    /// Submits a goal in a session; the run's id.
    pub async fn submit(&self, session: &str, goal: &str) -> String {
        let request = json!({ "session_id": session, "goal": goal, "mode": "plan_execute" });
        let (status, run) = self.post("/v1/runs", &request).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{run}");
        run["run_id"].as_str().unwrap().to_owned()
    }

    /// Submits a goal for an agent in a session; the run's id.
    pub async fn submit_agent(&self, session: &str, goal: &str, more: &Value) -> String {
        let mut request = json!({ "session_id": session, "goal": goal, "mode": "agent" });
        let more = more.as_object().unwrap().clone();
        request.as_object_mut().unwrap().extend(more);
        let (status, run) = self.post("/v1/runs", &request).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{run}");
        run["run_id"].as_str().unwrap().to_owned()
    }

    /// The run when it has ended.
    pub async fn ended(&self, run: &str) -> Value {
        eventually(&format!("{run} ends"), async || {
            let (_, run) = self.get(&format!("/v1/runs/{run}")).await;
            let status = run["status"].as_str()?;
            ["succeeded", "failed", "cancelled", "timed_out"]
                .contains(&status)
                .then_some(run)
        })
        .await
    }

    /// The events of a run, read from its stream to its end.
    pub async fn events(&self, run: &str) -> Vec<Frame> {
        self.follow(&format!("run_id={run}"), None)
            .await
            .rest()
            .await
    }

    /// Follows a stream: `query` is `run_id=…` or `session_id=…`.
    pub async fn follow(&self, query: &str, after: Option<&str>) -> Follow {
        let mut request = self.request(Method::GET, &format!("/v1/stream?{query}"));
        if let Some(id) = after {
            request = request.header("Last-Event-ID", id);
        }
        Follow::new(request.send().await.unwrap())
    }

    /// Executes a plan; the run's id.
    pub async fn execute(&self, session: &str, plan: &Value) -> String {
        let request = json!({ "session_id": session, "plan": plan });
        let (status, run) = self.post("/v1/execute", &request).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{run}");
        run["run_id"].as_str().unwrap().to_owned()
    }

    /// What a process' `/metrics` says.
    pub async fn metrics(&self, process: &str) -> String {
        let url = format!("http://{}/metrics", self.processes[process].addr);
        self.http
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    /// A metric's value on a process' probe, summed over the lines that begin with `prefix`.
    pub async fn metric(&self, process: &str, prefix: &str) -> f64 {
        let text = self.metrics(process).await;
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

pub async fn mint(keys: &Keys, tenant: &TenantId, role: Role) -> String {
    let new = NewKey {
        tenant: tenant.clone(),
        name: "test".into(),
        role,
        expires_in_s: None,
        policy: KeyPolicy::default(),
    };
    // A broker that has just started may not take a record yet.
    super::eventually("the key is made", async || {
        keys.create(new.clone()).await.ok().map(|made| made.1.text)
    })
    .await
}

pub async fn body(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}
