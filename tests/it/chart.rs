//! The Helm chart: rendered by the real helm, valid by Kubernetes' schemas, and as the code expects.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use agenthub::config::REFERENCE;
use agenthub::kafka::catalogue::Catalogue;
use serde_json::{Value, json};

use crate::dashboards::PROCESSES;
use crate::support::namespace;
use crate::support::tools::{root, run, tool};

const CHART: &str = "infra/helm/agenthub";
/// The versions of Kubernetes whose schemas it must fit: the oldest and the newest that are looked after.
const VERSIONS: [&str; 2] = ["1.33", "1.36"];

fn helm(helm: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(helm)
        .args(args)
        .args(["--kube-version", "1.33.0"])
        .current_dir(root())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// The objects that the chart makes of a file of values.
fn rendered(binary: &Path, python: &Path, values: &str) -> (PathBuf, Vec<Value>) {
    let text = helm(binary, &["template", "agenthub", CHART, "-f", values]).unwrap();
    let name = values.replace('/', "-");
    // Several tests render the same values at once.
    let path = std::env::temp_dir().join(format!("{}-{name}", namespace()));
    std::fs::write(&path, text).unwrap();
    let script = "import json, sys, yaml\n\
                  print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let json = run(python, &["-c", script, path.to_str().unwrap()]);
    (path, serde_json::from_str(&json).unwrap())
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn named<'a>(objects: &'a [Value], kind: &'a str, name: &str) -> &'a Value {
    let found = of_kind(objects, kind).find(|object| object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The variables of a pod's one container.
fn variables(pod: &Value) -> Vec<(&str, &str)> {
    let list = pod["containers"][0]["env"].as_array().unwrap();
    list.iter()
        .map(|v| (v["name"].as_str().unwrap(), v["value"].as_str().unwrap()))
        .collect()
}

#[test]
fn the_chart_is_valid_and_fits_the_code() {
    let (Some(helm_binary), Some(validate)) = (tool("helm"), tool("kubernetes-validate")) else {
        return;
    };
    let python = root().join(".agenthub/tools/kubernetes-validate-venv/bin/python");
    for values in ["least", "all"] {
        let values = format!("{CHART}/ci/{values}.yaml");
        helm(&helm_binary, &["lint", "--strict", CHART, "-f", &values]).unwrap();
        let (path, objects) = rendered(&helm_binary, &python, &values);
        for version in VERSIONS {
            run(
                &validate,
                &["-k", version, "--strict", "--quiet", path.to_str().unwrap()],
            );
        }
        std::fs::remove_file(path).unwrap();
        check_pods(&objects);
        for process in PROCESSES {
            let name = format!("agenthub-{process}");
            let port = if process == "api" { 8080 } else { 9100 };
            let pod = &named(&objects, "Deployment", &name)["spec"]["template"]["spec"];
            let container = &pod["containers"][0];
            assert_eq!(container["command"], json!([name]));
            assert_eq!(container["ports"][0]["containerPort"], port);
            let addr = if process == "api" {
                "AGENTHUB_API_ADDR"
            } else {
                "AGENTHUB_PROBE_ADDR"
            };
            assert!(variables(pod).contains(&(addr, format!("0.0.0.0:{port}").as_str())));
            for (probe, path) in [
                ("startupProbe", "/healthz"),
                ("livenessProbe", "/healthz"),
                ("readinessProbe", "/readyz"),
            ] {
                assert_eq!(container[probe]["httpGet"]["path"], path, "{name}");
            }
            for kind in ["Service", "PodDisruptionBudget", "NetworkPolicy"] {
                named(&objects, kind, &name);
            }
            // A process may end its work before it is killed.
            let drain = REFERENCE
                .iter()
                .find(|s| s.env == "AGENTHUB_DRAIN_MS")
                .unwrap();
            let drain_s = drain.default.parse::<u64>().unwrap() / 1000;
            let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
            assert!(grace >= drain_s + 5 + 15, "{name}: {grace}");
        }
    }
}

/// What every pod has: only settings that exist, nothing that it does not need.
fn check_pods(objects: &[Value]) {
    let deployments = of_kind(objects, "Deployment");
    let pods: Vec<&Value> = deployments
        .chain(of_kind(objects, "Job"))
        .map(|object| &object["spec"]["template"]["spec"])
        .collect();
    assert_eq!(pods.len(), PROCESSES.len() + 1);
    for pod in pods {
        let container = &pod["containers"][0];
        let name = &container["name"];
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
        assert!(
            container["resources"]["limits"]["memory"].is_string(),
            "{name}"
        );
        let mut seen = BTreeSet::new();
        for (variable, value) in variables(pod) {
            let setting = variable.strip_suffix("_FILE").unwrap_or(variable);
            let setting = REFERENCE.iter().find(|s| s.env == setting);
            let setting = setting.unwrap_or_else(|| panic!("{name}: no setting {variable}"));
            assert!(
                !setting.secret || variable.ends_with("_FILE"),
                "{name}: {variable} is a secret"
            );
            assert!(seen.insert(setting.env), "{name}: {variable} twice");
            assert!(!value.contains("e+"), "{name}: {variable}={value}");
        }
        let required = REFERENCE.iter().filter(|s| s.default == "\0required");
        for setting in required {
            assert!(
                seen.contains(setting.env),
                "{name}: {} is missing",
                setting.env
            );
        }
    }
}

#[test]
fn what_is_switched_on_is_there() {
    let (Some(helm_binary), Some(_)) = (tool("helm"), tool("kubernetes-validate")) else {
        return;
    };
    let python = root().join(".agenthub/tools/kubernetes-validate-venv/bin/python");
    let (path, objects) = rendered(&helm_binary, &python, &format!("{CHART}/ci/all.yaml"));
    std::fs::remove_file(path).unwrap();

    // What scales by lag names the group and the topic that the process reads.
    let catalogue = Catalogue::embedded(false).unwrap();
    let scaled: Vec<_> = of_kind(&objects, "ScaledObject").collect();
    assert_eq!(scaled.len(), 3);
    for object in scaled {
        let trigger = &object["spec"]["triggers"][0];
        let group = trigger["metadata"]["consumerGroup"].as_str().unwrap();
        let topic = trigger["metadata"]["topic"].as_str().unwrap();
        let group = group.strip_prefix("prod.").unwrap();
        let topic = topic.strip_prefix("prod.").unwrap();
        let declared = catalogue.topics.iter().find(|t| t.topic.as_str() == topic);
        let consumers = &declared.unwrap().consumers;
        assert!(
            consumers.iter().any(|c| c == group),
            "{group} does not read {topic}"
        );
        assert_eq!(
            object["spec"]["scaleTargetRef"]["name"],
            format!("agenthub-{group}")
        );
        assert_eq!(trigger["authenticationRef"]["name"], "kafka");
        assert!(object["spec"]["minReplicaCount"].as_u64().unwrap() >= 1);
    }
    let scaled = of_kind(&objects, "HorizontalPodAutoscaler").count();
    assert_eq!(scaled, 2);
    // Who is scaled has no number of replicas that an upgrade would set back.
    for deployment in of_kind(&objects, "Deployment") {
        assert!(
            deployment["spec"]["replicas"].is_null(),
            "{}",
            deployment["metadata"]["name"]
        );
    }

    // Rules and dashboards are those of the repository, with links that lead somewhere.
    let alerts = named(&objects, "PrometheusRule", "agenthub-alerts");
    let count = |value: &Value| {
        let groups = value["spec"]["groups"].as_array().unwrap();
        let rules = groups.iter().map(|g| g["rules"].as_array().unwrap().len());
        rules.sum::<usize>()
    };
    assert!(
        count(alerts) > 20 && count(named(&objects, "PrometheusRule", "agenthub-recording")) > 10
    );
    let text = alerts.to_string();
    assert!(text.contains("https://runbooks.example.com/agenthub/KafkaDown.md"));
    assert!(!text.contains("externalURL"), "{text}");
    let dashboards = named(&objects, "ConfigMap", "agenthub-dashboards");
    for (name, text) in dashboards["data"].as_object().unwrap() {
        let file = name.strip_prefix("agenthub-").unwrap();
        let path = root().join("infra/grafana/dashboards").join(file);
        let of_file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let of_chart: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        assert_eq!(of_chart, of_file);
    }
    let monitor = named(&objects, "ServiceMonitor", "agenthub");
    assert_eq!(monitor["spec"]["jobLabel"], "app.kubernetes.io/component");
    for process in PROCESSES {
        let service = named(&objects, "Service", &format!("agenthub-{process}"));
        assert_eq!(
            service["metadata"]["labels"]["app.kubernetes.io/component"],
            process
        );
    }
    // Only what calls a model or fetches pages reaches the internet, and no private address by it.
    for policy in of_kind(&objects, "NetworkPolicy") {
        let name = policy["metadata"]["name"].as_str().unwrap();
        let egress = policy["spec"]["egress"].to_string();
        let goes_out = ["agenthub-planner", "agenthub-executor"].contains(&name);
        assert_eq!(egress.contains("0.0.0.0/0"), goes_out, "{name}");
        assert_eq!(egress.contains("169.254.0.0/16"), goes_out, "{name}");
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let Some(binary) = tool("helm") else {
        return;
    };
    let least = format!("{CHART}/ci/least.yaml");
    let refused = |sets: &[&str]| {
        let mut args = vec!["template", "agenthub", CHART, "-f", &least];
        for set in sets {
            args.extend(["--set", set]);
        }
        helm(&binary, &args).unwrap_err()
    };
    for (set, expected) in [
        ("config.KAFKA_BROKERS=", "config.KAFKA_BROKERS is required"),
        (
            "config.AGENTHUB_STORAGE_URL=",
            "config.AGENTHUB_STORAGE_URL is required",
        ),
        ("secret.name=", "secret.name is required"),
        ("processes.api.scaling.by=lag", "the API consumes nothing"),
        ("processes.planner.scaling.by=luck", "processes"),
        ("config.OPENAI_API_KEY=sesame", "config"),
        ("processes.dlg.replicas=1", "dlg"),
    ] {
        let told = refused(&[set]);
        assert!(told.contains(expected), "{set}: {told}");
    }
}
