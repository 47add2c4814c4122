//! Query parameters and ids in paths.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use axum::http::Uri;
use axum::http::request::Parts;

use super::state::ApiState;
use crate::error::ApiError;

const DEFAULT_PAGE: u32 = 20;
const MAX_PAGE: u32 = 100;

/// The parameters of a query.
#[derive(Debug)]
pub(super) struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads the query of `uri`, in which only `known` names may occur, each once.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let mut params = BTreeMap::new();
        let query = uri.query().unwrap_or_default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&name.as_ref()) {
                let name: String = name.chars().take(64).collect();
                return Err(ApiError::field(name, "is not a parameter of this request"));
            }
            let before = params.insert(name.clone().into_owned(), value.into_owned());
            if before.is_some() {
                return Err(ApiError::field(name, "occurs twice"));
            }
        }
        Ok(Self(params))
    }

    /// The text of a parameter.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A parameter that has a form; `expected` says which.
    pub(super) fn parsed<T: FromStr>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let parsed = text.parse();
        parsed
            .map(Some)
            .map_err(|_| ApiError::field(name, format!("expected {expected}")))
    }

    /// How many items of a list are wanted.
    pub(super) fn limit(&self) -> Result<u32, ApiError> {
        let expected = format!("a whole number from 1 to {MAX_PAGE}");
        match self.parsed("limit", &expected)? {
            None => Ok(DEFAULT_PAGE),
            Some(limit @ 1..=MAX_PAGE) => Ok(limit),
            Some(_) => Err(ApiError::field("limit", format!("expected {expected}"))),
        }
    }
}

impl FromRequestParts<ApiState> for Params {
    type Rejection = ApiError;

    /// For routes that know no parameters.
    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        Self::read(&parts.uri, &[])
    }
}

/// The id in a path: `None` when it cannot be one, which is answered like an unknown one.
#[derive(Debug)]
pub(super) struct PathId<T>(pub(super) Option<T>);

impl<T: FromStr + Send> FromRequestParts<ApiState> for PathId<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(text.ok().and_then(|Path(text)| text.parse().ok())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RunId;

    fn read(query: &str) -> Result<Params, ApiError> {
        let uri: Uri = format!("/v1/runs?{query}").parse().unwrap();
        Params::read(&uri, &["limit", "cursor"])
    }

    fn field(error: ApiError) -> String {
        error.details.unwrap()["field"].as_str().unwrap().to_owned()
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert_eq!(field(read("limt=3").unwrap_err()), "limt");
        assert_eq!(field(read("limit=3&limit=3").unwrap_err()), "limit");
        assert_eq!(read("cursor=a%20b").unwrap().text("cursor"), Some("a b"));
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(read("").unwrap().limit().unwrap(), 20);
        assert_eq!(read("limit=100").unwrap().limit().unwrap(), 100);
        for wrong in ["limit=0", "limit=101", "limit=-1", "limit=", "limit=x"] {
            assert_eq!(field(read(wrong).unwrap().limit().unwrap_err()), "limit");
        }
        let cursor = read("cursor=run_x").unwrap();
        assert!(cursor.parsed::<RunId>("cursor", "a cursor").is_err());
    }
}
