//! Where models are asked: the endpoint of the settings first, then the fall-backs in their order.

use secrecy::{ExposeSecret, SecretString};

use crate::config::Settings;

/// One place to ask one model.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// For metrics, logs and the circuit breaker: `primary`, or host and port of the base URL. Models
    /// of one endpoint share it, since they fail together.
    pub name: String,
    /// The model; `None` stands for the one that the request names.
    pub model: Option<String>,
    /// Base URL, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// API key; an empty one is not sent.
    pub api_key: SecretString,
}

/// Why the list of endpoints was refused. Says nothing of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("AGENTHUB_LLM_FALLBACK, entry {position}: {problem}")]
pub struct EndpointError {
    /// Which entry, from 1.
    pub position: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The endpoints that the settings name, the first one first.
pub fn endpoints(settings: &Settings) -> Result<Vec<Endpoint>, EndpointError> {
    let primary = Endpoint {
        name: "primary".to_owned(),
        model: None,
        base_url: settings.openai_base_url.clone(),
        api_key: settings.openai_api_key.clone(),
    };
    let mut keys = settings.llm_fallback_keys.expose_secret().split(',');
    let mut all = vec![primary];
    for (index, text) in settings.llm_fallback.iter().enumerate() {
        let refuse = |problem| EndpointError {
            position: index + 1,
            problem,
        };
        let (model, base_url) = match text.split_once('@') {
            Some((model, url)) => (model.trim(), Some(url.trim())),
            None => (text.trim(), None),
        };
        if model.is_empty() {
            return Err(refuse("expected <model>@<base URL>, or <model>"));
        }
        let model = Some(model.to_owned());
        let Some(base_url) = base_url else {
            let primary = all[0].clone();
            all.push(Endpoint { model, ..primary });
            continue;
        };
        let url = url::Url::parse(base_url).map_err(|_| refuse("the base URL is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("the base URL is not http or https"));
        }
        let host = url.host_str().ok_or(refuse("the base URL has no host"))?;
        let port = url.port_or_known_default().unwrap_or_default();
        all.push(Endpoint {
            name: format!("{host}:{port}"),
            model,
            base_url: base_url.to_owned(),
            api_key: keys.next().unwrap_or_default().trim().to_owned().into(),
        });
    }
    if keys.any(|key| !key.trim().is_empty()) {
        return Err(EndpointError {
            position: all.len(),
            problem: "AGENTHUB_LLM_FALLBACK_KEYS has more keys than there are base URLs",
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Source;

    fn parse(list: &str, keys: &str) -> Result<Vec<Endpoint>, EndpointError> {
        let secret = "a:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
        let env = [
            ("AGENTHUB_SIGNING_SECRETS", secret),
            ("AGENTHUB_MASTER_KEYS", secret),
            ("OPENAI_BASE_URL", "https://first.example/v1"),
            ("OPENAI_API_KEY", "k0"),
            ("AGENTHUB_LLM_FALLBACK", list),
            ("AGENTHUB_LLM_FALLBACK_KEYS", keys),
        ];
        let env: BTreeMap<_, _> = env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        endpoints(&Settings::load(&Source::from_env(env).unwrap()).unwrap())
    }

    #[test]
    fn the_list_is_read_in_its_order() {
        let all = parse(
            "small, big@https://second.example/v1 ,m@http://127.0.0.1:9/v1",
            "k1,",
        )
        .unwrap();
        let brief: Vec<_> = all
            .iter()
            .map(|e| {
                let key = e.api_key.expose_secret();
                (
                    e.name.as_str(),
                    e.model.as_deref(),
                    e.base_url.as_str(),
                    key,
                )
            })
            .collect();
        assert_eq!(
            brief,
            [
                ("primary", None, "https://first.example/v1", "k0"),
                ("primary", Some("small"), "https://first.example/v1", "k0"),
                (
                    "second.example:443",
                    Some("big"),
                    "https://second.example/v1",
                    "k1"
                ),
                ("127.0.0.1:9", Some("m"), "http://127.0.0.1:9/v1", ""),
            ]
        );
        assert_eq!(parse("", "").unwrap().len(), 1);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_keys() {
        for (list, keys, position) in [
            ("a,@https://b", "", 2),
            ("a@b", "", 1),
            ("a@ftp://b", "", 1),
            ("a@https://b", "one,two", 2),
        ] {
            let error = parse(list, keys).unwrap_err();
            assert_eq!(error.position, position, "{list}");
            assert!(!error.to_string().contains("two"), "{error}");
        }
    }
}
