//! The tool over real files and stores.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::corpus::{Added, CorpusError};
use super::storage::Storage;
use super::*;
use crate::config::StorageSettings;
use crate::ids::{RunId, SessionId, TenantId};

/// A store in a folder, a search that looks for changes each time, and a place for files.
struct House {
    temp: TempDir,
    corpus: Corpus,
    tool: Retrieval,
}

fn local_storage(folder: &Path) -> Storage {
    Storage::open(&StorageSettings {
        url: folder.to_str().unwrap().to_owned(),
        endpoint: None,
        region: String::new(),
        access_key_id: String::new(),
        secret_access_key: String::new().into(),
        session_token: String::new().into(),
        allow_http: false,
    })
    .unwrap()
}

/// Each call takes a while, as over a network, so that writers come between each other.
fn remote_storage() -> Storage {
    let latency = ThrottleConfig {
        wait_get_per_call: Duration::from_millis(1),
        wait_put_per_call: Duration::from_millis(1),
        ..ThrottleConfig::default()
    };
    Storage {
        store: Arc::new(ThrottledStore::new(InMemory::new(), latency)),
        folder: None,
    }
}

impl House {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let corpus = Corpus::new(local_storage(&temp.path().join("storage")));
        let tool =
            Retrieval::open(corpus.clone(), &temp.path().join("cache"), Duration::ZERO).unwrap();
        Self { temp, corpus, tool }
    }

    /// Writes files below `docs` and adds that folder.
    async fn add(&self, tenant: &str, files: &[(&str, &str)]) -> Vec<(String, Added)> {
        let docs = self.temp.path().join(tenant).join("docs");
        for (name, text) in files {
            let file = docs.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let found = intake::find(&[docs]).unwrap();
        let documents = found
            .files
            .iter()
            .map(|f| intake::read(f).unwrap())
            .collect();
        self.corpus.add(&id(tenant), documents).await.unwrap()
    }

    async fn search(&self, tenant: &str, args: Value) -> Value {
        self.tool.call(call(tenant, args)).await.unwrap().value
    }

    async fn sources(&self, tenant: &str, query: &str) -> Vec<String> {
        let found = self.search(tenant, json!({"query": query})).await;
        let results = found["results"].as_array().unwrap().iter();
        results
            .map(|r| r["source"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn id(tenant: &str) -> TenantId {
    tenant.parse().unwrap()
}

fn call(tenant: &str, args: Value) -> ToolCall {
    ToolCall {
        tenant: id(tenant),
        session_id: SessionId::generate(),
        run_id: RunId::generate(),
        step_id: "s1".to_owned(),
        attempt: 1,
        idempotency_key: "k".to_owned(),
        args,
    }
}

fn document(path: &str, text: &str) -> corpus::NewDocument {
    corpus::NewDocument {
        path: path.to_owned(),
        content: corpus::sha256(text.as_bytes()),
        extracted: media::extract(path, text.as_bytes()).unwrap(),
    }
}

const HANDBOOK: &str = "# Handbook\n\nGeneral words about work.\n\n## Leave\n\nEvery employee has \
    thirty days of **paid leave** a year.\n\n## Idempotency\n\nA repeated request carries the same \
    Idempotency-Key and has one effect.\n";

#[tokio::test]
async fn the_right_passage_is_found_with_its_words() {
    let house = House::new();
    let filler = "Nothing to see in this paragraph about gardens and weather.\n\n".repeat(100);
    let long =
        format!("# Long\n\n{filler}The zebra crossing is repainted each spring.\n\n{filler}");
    house
        .add(
            "acme",
            &[
                ("handbook.md", HANDBOOK),
                ("sub/long.md", &long),
                ("tea.html", "<title>Tea</title><p>Brew with boiling water."),
            ],
        )
        .await;

    let found = house
        .search(
            "acme",
            json!({"query": "what do the docs say about idempotent requests?"}),
        )
        .await;
    let best = &found["results"][0];
    assert_eq!(best["source"], "docs/handbook.md#idempotency");
    assert_eq!(best["title"], "Handbook");
    assert_eq!(
        best["snippet"],
        "A repeated request carries the same Idempotency-Key and has one effect"
    );
    assert!(best["score"].as_f64().unwrap() > 0.0);

    let found = house
        .search("acme", json!({"query": "zebras", "top_k": 1}))
        .await;
    let snippet = found["results"][0]["snippet"].as_str().unwrap();
    assert!(
        snippet.contains("zebra crossing") && snippet.chars().count() <= 400,
        "{snippet}"
    );
    assert_eq!(found["total"], 1);

    assert_eq!(house.sources("acme", "boiling").await, ["docs/tea.html"]);
    let found = house
        .search("acme", json!({"query": "gardens", "top_k": 2}))
        .await;
    assert_eq!(found["results"].as_array().unwrap().len(), 2);
    assert!(found["total"].as_u64().unwrap() > 2);
}

#[tokio::test]
async fn the_index_follows_the_corpus() {
    let house = House::new();
    assert_eq!(
        house.search("acme", json!({"query": "leave"})).await,
        json!({"query": "leave", "results": [], "total": 0})
    );

    let added = house
        .add(
            "acme",
            &[
                ("a.md", "# One\nfirst apple"),
                ("b.md", "# Two\nsecond pear"),
            ],
        )
        .await;
    assert_eq!(
        added,
        [
            ("docs/a.md".to_owned(), Added::Added),
            ("docs/b.md".to_owned(), Added::Added)
        ]
    );
    assert_eq!(house.sources("acme", "apple").await, ["docs/a.md#one"]);

    let added = house.add("acme", &[("a.md", "# One\nfirst cherry")]).await;
    assert_eq!(
        added,
        [
            ("docs/a.md".to_owned(), Added::Updated),
            ("docs/b.md".to_owned(), Added::Unchanged)
        ]
    );
    assert!(house.sources("acme", "apple").await.is_empty());
    assert_eq!(house.sources("acme", "cherry").await, ["docs/a.md#one"]);
    assert_eq!(house.sources("acme", "pear").await, ["docs/b.md#two"]);

    assert!(
        house
            .corpus
            .remove(&id("acme"), "docs/a")
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        house.corpus.remove(&id("acme"), "docs/a.md").await.unwrap(),
        ["docs/a.md"]
    );
    assert!(house.sources("acme", "cherry").await.is_empty());
    assert_eq!(
        house.corpus.remove(&id("acme"), "docs/").await.unwrap(),
        ["docs/b.md"]
    );
    assert!(house.sources("acme", "pear").await.is_empty());
    let left: Vec<_> = fs::read_dir(house.temp.path().join("storage/docs/acme"))
        .unwrap()
        .collect();
    assert_eq!(left.len(), 2, "only manifest and lock stay: {left:?}");
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let house = House::new();
    house.add("acme", &[("a.md", "common secretplan")]).await;
    house.add("globex", &[("g.md", "common otherplan")]).await;
    assert_eq!(house.sources("acme", "common").await, ["docs/a.md"]);
    assert_eq!(
        house.sources("globex", "common secretplan").await,
        ["docs/g.md"]
    );
    assert!(house.sources("initech", "common").await.is_empty());
}

#[tokio::test]
async fn odd_queries_are_answered() {
    let house = House::new();
    house
        .add("acme", &[("a.md", "the title:field AND (NOT a) query")])
        .await;
    let long = "x".repeat(512);
    let many: String = ["w1 ", "w2 ", "w3 "].concat().repeat(50);
    for query in [
        "title:field",
        "\"unclosed",
        "a AND",
        "((",
        "+-!",
        "*",
        "^2~",
        "[a TO",
        "\\",
        "é\u{0}\u{202e}",
        "{}",
        "🦀",
        "!!",
        &long,
        &many,
    ] {
        house.search("acme", json!({"query": query})).await;
    }
    // No syntax: these words are looked for, not obeyed.
    assert_eq!(
        house.sources("acme", "object:docs OR -field").await,
        ["docs/a.md"]
    );
    // Words that are everywhere count when there are no others.
    assert_eq!(house.sources("acme", "the").await, ["docs/a.md"]);
}

#[tokio::test]
async fn an_index_is_used_as_it_is_within_the_interval_and_when_the_store_is_gone() {
    let house = House::new();
    house.add("acme", &[("a.md", "first")]).await;
    let slow = Retrieval::open(
        house.corpus.clone(),
        &house.temp.path().join("cache"),
        Duration::from_hours(1),
    )
    .unwrap();
    let ask = || async {
        let found = slow
            .call(call("acme", json!({"query": "second"})))
            .await
            .unwrap();
        found.value["total"].as_u64().unwrap()
    };
    assert_eq!(ask().await, 0);
    house.add("acme", &[("a.md", "second")]).await;
    assert_eq!(ask().await, 0);
    assert_eq!(house.sources("acme", "second").await, ["docs/a.md"]);

    fs::write(
        house.temp.path().join("storage/docs/acme/manifest.json"),
        "damaged",
    )
    .unwrap();
    assert_eq!(house.sources("acme", "second").await, ["docs/a.md"]);
    let fresh = Retrieval::open(
        house.corpus.clone(),
        &house.temp.path().join("cache"),
        Duration::ZERO,
    )
    .unwrap();
    let error = fresh
        .call(call("acme", json!({"query": "second"})))
        .await
        .unwrap_err();
    assert_eq!(error.code, "documents_unavailable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_at_the_same_time_share_one_build() {
    let house = House::new();
    house.add("acme", &[("a.md", "apple")]).await;
    let all = join_all((0..16).map(|_| house.sources("acme", "apple"))).await;
    assert!(all.iter().all(|sources| sources == &["docs/a.md"]));
    let workspace = fs::read_dir(house.temp.path().join("cache/search")).unwrap();
    let folders = workspace.filter_map(|e| fs::read_dir(e.unwrap().path()).ok());
    let indexes = folders
        .flatten()
        .filter(|e| e.as_ref().unwrap().path().is_dir());
    assert_eq!(indexes.count(), 1);
}

#[tokio::test]
async fn a_search_that_is_given_up_does_no_harm() {
    let house = House::new();
    let files: Vec<(String, String)> = (0..200)
        .map(|n| (format!("{n}.md"), format!("number n{n}")))
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    house.add("acme", &files).await;
    // Polled a little further each time, then dropped.
    for polls in 1..40 {
        let mut search = Box::pin(house.sources("acme", "n7"));
        for _ in 0..polls {
            if futures_util::poll!(&mut search).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(
        house.search("acme", json!({"query": "number"})).await["total"],
        200
    );
    assert_eq!(house.sources("acme", "n7").await, ["docs/7.md"]);
}

/// Adds from several sides at once, and removals between them, by one store each.
async fn nothing_is_lost(storages: Vec<Storage>) {
    let tenant = id("acme");
    let first = Corpus::new(storages[0].clone());
    first
        .add(&tenant, vec![document("old.md", "old")])
        .await
        .unwrap();
    let adders = storages.iter().enumerate().map(|(n, storage)| {
        let corpus = Corpus::new(storage.clone());
        let tenant = &tenant;
        async move {
            for round in 0..4 {
                let path = format!("{n}-{round}.md");
                corpus
                    .add(
                        tenant,
                        vec![document(&path, &path), document("same.md", &path)],
                    )
                    .await?;
            }
            Ok::<_, CorpusError>(())
        }
    });
    let (added, removed) = tokio::join!(join_all(adders), first.remove(&tenant, "old.md"));
    added.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(removed.unwrap(), ["old.md"]);

    let manifest = first.manifest(&tenant).await.unwrap();
    let mut wanted: BTreeSet<String> = (0..storages.len())
        .flat_map(|n| (0..4).map(move |round| format!("{n}-{round}.md")))
        .collect();
    wanted.insert("same.md".to_owned());
    assert_eq!(
        manifest.documents.keys().cloned().collect::<BTreeSet<_>>(),
        wanted
    );
    for (path, entry) in &manifest.documents {
        let stored = first.document(&tenant, &entry.object).await.unwrap();
        assert_eq!(&stored.expect("every listed document is there").path, path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_lose_nothing_in_a_folder() {
    let temp = tempfile::tempdir().unwrap();
    nothing_is_lost((0..6).map(|_| local_storage(temp.path())).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_lose_nothing_in_a_remote_store() {
    let storage = remote_storage();
    nothing_is_lost(vec![storage; 6]).await;
}

#[test]
fn places_are_named_by_their_last_folder() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("a.md"), "a").unwrap();
    let name = temp
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let found = intake::find(&[PathBuf::from(format!("{}/", temp.path().display()))]).unwrap();
    assert_eq!(found.files[0].path, format!("{name}/a.md"));
}
