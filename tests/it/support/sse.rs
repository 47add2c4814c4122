//! A client of event streams that reads frame by frame.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::Value;

/// One frame of a stream.
#[derive(Debug, Clone)]
pub struct Frame {
    /// `None` for comments and the opening.
    pub event: Option<String>,
    pub id: Option<String>,
    pub data: Value,
    pub text: String,
}

/// A stream that is being read.
pub struct Follow {
    response: Response,
    text: String,
}

impl Follow {
    pub fn new(response: Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            text: String::new(),
        }
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        self.try_next().await.unwrap()
    }

    /// As [`Follow::next`], for a connection that may break.
    pub async fn try_next(&mut self) -> reqwest::Result<Option<Frame>> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (parse(frame), rest.to_owned());
                self.text = rest;
                return Ok(Some(frame));
            }
            let Some(chunk) = self.response.chunk().await? else {
                return Ok(None);
            };
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next frame that is an event.
    pub async fn event(&mut self) -> Option<Frame> {
        let event = async {
            loop {
                let frame = self.next().await?;
                if frame.event.is_some() {
                    return Some(frame);
                }
            }
        };
        let event = tokio::time::timeout(Duration::from_secs(30), event).await;
        event.expect("the stream tells nothing")
    }

    /// Reads up to and including the first event of a kind.
    pub async fn until(&mut self, kind: &str) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.event().await;
            let frame = frame.unwrap_or_else(|| panic!("no {kind} in {frames:?}"));
            let found = frame.event.as_deref() == Some(kind);
            frames.push(frame);
            if found {
                return frames;
            }
        }
    }

    /// The events up to the end of the stream.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.event().await {
            frames.push(frame);
        }
        frames
    }
}

/// The kinds of events.
pub fn kinds(frames: &[Frame]) -> Vec<&str> {
    frames.iter().filter_map(|f| f.event.as_deref()).collect()
}

/// The ids of events.
pub fn ids(frames: &[Frame]) -> Vec<&str> {
    frames.iter().filter_map(|f| f.id.as_deref()).collect()
}

fn parse(text: &str) -> Frame {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    Frame {
        event: field("event: ").map(str::to_owned),
        id: field("id: ").map(str::to_owned),
        data: field("data: ").map_or(Value::Null, |data| serde_json::from_str(data).unwrap()),
        text: text.to_owned(),
    }
}
