//! An installation of its own: real processes on the shared broker and Redis, in one namespace.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agenthub::governance::{Keys, NewKey, Role};
use agenthub::ids::TenantId;
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::{KafkaSettings, Producer};
use agenthub::messages::Signer;
use agenthub::store::Redis;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use super::{SIGNING, environment, eventually, namespace, settings};

/// One process. It is killed when this is dropped.
pub struct Process {
    child: Child,
    pub addr: String,
}

impl Process {
    /// Ends it at once, as the kernel does when memory runs out.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to stop; whether it ended in order.
    pub async fn stop(&mut self) -> bool {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        eventually("the process ends", || {
            std::future::ready(self.child.try_wait().unwrap())
        })
        .await
        .success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        let namespace = namespace();
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
        let mut stack = Self {
            namespace,
            tenant: "acme".parse().unwrap(),
            http: Client::builder().no_proxy().build().unwrap(),
            environment,
            processes: BTreeMap::new(),
            api_key: String::new(),
            admin_key: String::new(),
        };
        let kafka = stack.kafka();
        let catalogue = Catalogue::embedded(true).unwrap();
        Admin::new(&kafka)
            .unwrap()
            .apply(&catalogue, false)
            .await
            .unwrap();
        let keys = stack.keys();
        stack.api_key = mint(&keys, &stack.tenant, Role::Client).await;
        stack.admin_key = mint(&keys, &stack.tenant, Role::Admin).await;
        stack
    }

    pub fn keys(&self) -> Keys {
        let signer = Signer::parse(SIGNING).unwrap();
        let producer = Producer::new(&self.kafka(), signer.clone(), "test").unwrap();
        Keys::new(self.redis(), producer, signer)
    }

    pub fn kafka(&self) -> KafkaSettings {
        KafkaSettings::from(&settings(&self.namespace, &[]))
    }

    pub fn redis(&self) -> Redis {
        Redis::connect(&settings(&self.namespace, &[]), Duration::from_secs(5)).unwrap()
    }

    /// Starts the simulator, and makes it the installation's model.
    pub async fn spawn_simulator(&mut self, args: &[&str]) {
        let addr = free_address();
        let mut all = vec!["--addr", &addr];
        all.extend(args);
        self.spawn(
            "llm-sim",
            env!("CARGO_BIN_EXE_agenthub-llm-sim"),
            &all,
            addr.clone(),
        );
        self.environment
            .insert("OPENAI_BASE_URL".into(), format!("http://{addr}/v1"));
        self.environment
            .insert("OPENAI_API_KEY".into(), "simulated".into());
        self.until_ready("llm-sim").await;
    }

    /// Starts processes by the names of their binaries, without `agenthub-`, and waits for them. A
    /// suffix such as `-2` makes another one.
    pub async fn spawn_all(&mut self, names: &[&str]) {
        for name in names {
            let binary = match name.split('-').next().unwrap() {
                "api" => env!("CARGO_BIN_EXE_agenthub-api"),
                "planner" => env!("CARGO_BIN_EXE_agenthub-planner"),
                "executor" => env!("CARGO_BIN_EXE_agenthub-executor"),
                other => panic!("no process {other}"),
            };
            let addr = free_address();
            self.environment
                .insert("AGENTHUB_API_ADDR".into(), addr.clone());
            self.environment
                .insert("AGENTHUB_PROBE_ADDR".into(), addr.clone());
            self.spawn(name, binary, &[], addr);
        }
        for name in names {
            self.until_ready(name).await;
        }
    }

    fn spawn(&mut self, name: &str, binary: &str, args: &[&str], addr: String) {
        let log = std::env::temp_dir().join(format!("{}-{name}.log", self.namespace));
        let log = std::fs::File::create(log).unwrap();
        let child = Command::new(binary)
            .args(args)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes
            .insert(name.to_owned(), Process { child, addr });
    }

    async fn until_ready(&self, name: &str) {
        let url = format!("http://{}/readyz", self.processes[name].addr);
        eventually(&format!("{name} is ready"), async || {
            let answer = self.http.get(&url).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Sets a variable for processes started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
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

    /// The events of a run, read from its stream to its end: type and whole event.
    pub async fn events(&self, run: &str) -> Vec<(String, Value)> {
        let request = self.request(Method::GET, &format!("/v1/stream?run_id={run}"));
        let text = request
            .timeout(Duration::from_secs(30))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        parse_sse(&text)
    }

    /// A metric's value on a process' probe, summed over the lines that begin with `prefix`.
    pub async fn metric(&self, process: &str, prefix: &str) -> f64 {
        let url = format!("http://{}/metrics", self.processes[process].addr);
        let text = self
            .http
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// The frames of a finished stream that carry events.
pub fn parse_sse(text: &str) -> Vec<(String, Value)> {
    let frame = |frame: &str| {
        let field = |name: &str| {
            frame
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::to_owned)
        };
        Some((
            field("event: ")?,
            serde_json::from_str(&field("data: ")?).ok()?,
        ))
    };
    text.split("\n\n").filter_map(frame).collect()
}

async fn mint(keys: &Keys, tenant: &TenantId, role: Role) -> String {
    let new = NewKey {
        tenant: tenant.clone(),
        name: "test".into(),
        role,
        expires_in_s: None,
    };
    keys.create(new).await.unwrap().1.text
}

pub async fn body(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}
