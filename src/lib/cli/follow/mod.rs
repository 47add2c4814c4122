//! Following a run to its end.

mod brief;
mod lines;
mod live;
mod report;

use std::io::Write;

use anyhow::Context;
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{Client, ClientError, Event, Failure, Run, is_terminal};
use super::output::{self, json_line, one_line};
use live::Live;

pub use report::{describe, finish};

/// Where the events of a run and its end are shown.
pub struct View {
    form: Form,
    out: Box<dyn Write + Send>,
}

/// How they are shown.
enum Form {
    /// Each as a line of JSON.
    Json,
    /// A line for each that says something.
    Plain,
    /// Lines and spinners.
    Live(Live),
}

impl View {
    /// On standard output, in the form that fits it.
    pub fn new(json: bool) -> Self {
        let live = if json { None } else { Live::on_terminal() };
        let mut view = Self::to(Box::new(std::io::stdout()), json);
        if let Some(live) = live {
            view.form = Form::Live(live);
        }
        view
    }

    /// To `out`, without spinners.
    pub fn to(out: Box<dyn Write + Send>, json: bool) -> Self {
        let form = if json { Form::Json } else { Form::Plain };
        Self { form, out }
    }

    /// Whether programs read it.
    pub fn is_json(&self) -> bool {
        matches!(self.form, Form::Json)
    }

    /// Says something that is not an event; not to programs.
    pub fn say(&mut self, text: &str) -> anyhow::Result<()> {
        match &self.form {
            Form::Json => eprintln!("agenthub: {text}"),
            Form::Plain => self.write(&format!("{text}\n"))?,
            Form::Live(live) => live.say(text)?,
        }
        Ok(())
    }

    /// Writes a text as it is. Spinners have to be closed.
    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let written = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush());
        written.context("standard output")
    }

    fn event(&mut self, event: &Event, raw: &str) -> anyhow::Result<()> {
        match &mut self.form {
            Form::Json => self.write(&json_line(raw)),
            Form::Plain => match lines::line(event) {
                Some(line) => self.write(&format!("{line}\n")),
                None => Ok(()),
            },
            Form::Live(live) => Ok(live.event(event)?),
        }
    }

    /// Events are missing from here on back.
    fn truncated(&mut self) -> anyhow::Result<()> {
        match &mut self.form {
            Form::Json => return self.write("{\"type\":\"stream.truncated\"}\n"),
            Form::Plain => {}
            Form::Live(live) => live.forget(),
        }
        self.say("· earlier events are no longer kept")
    }

    /// How the run stands after missing events.
    fn snapshot(&mut self, run: &Run, raw: &str) -> anyhow::Result<()> {
        if self.is_json() {
            let line = format!("{{\"type\":\"stream.snapshot\",\"data\":{raw}}}");
            return self.write(&json_line(&line));
        }
        self.say(&format!("· the run is {}", one_line(&run.status, 32)))
    }

    /// Takes away what is not to stay on the terminal.
    fn close(&mut self) {
        if let Form::Live(live) = &mut self.form {
            live.close();
        }
    }
}

/// How a run ended, as far as its stream told it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The status; `None` when the stream had nothing more to say.
    pub status: Option<String>,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    /// The step that it failed in.
    pub step: Option<String>,
}

/// Why a run is not followed to its end.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The stream cannot be read any more.
    #[error("{error}; the run goes on: agenthub watch {run}")]
    Lost {
        /// What happened.
        error: ClientError,
        /// The run.
        run: String,
    },
    /// What was told could not be written.
    #[error(transparent)]
    Output(#[from] anyhow::Error),
}

/// Shows the events of `run` that follow `after`. The first of `interrupts` asks for a graceful
/// cancel, the second forces it and ends with `None`.
pub async fn follow(
    client: &Client,
    run: &str,
    after: Option<String>,
    view: &mut View,
    mut interrupts: impl Stream<Item = ()> + Unpin,
) -> Result<Option<End>, FollowError> {
    let mut events = client.follow(run, after);
    let mut cancelling = false;
    loop {
        let frame = tokio::select! {
            frame = events.next() => frame.map_err(|error| FollowError::Lost { error, run: run.to_owned() })?,
            Some(()) = interrupts.next() => {
                if cancelling {
                    force(client, run, view, &mut interrupts).await?;
                    return Ok(None);
                }
                cancelling = true;
                view.say("cancelling; press Ctrl-C again to drop the calls under way")?;
                tokio::select! {
                    cancelled = client.cancel(run, false) => if let Err(error) = cancelled {
                        view.say(&format!("not cancelled: {error}"))?;
                    },
                    Some(()) = interrupts.next() => {
                        force(client, run, view, &mut interrupts).await?;
                        return Ok(None);
                    }
                }
                continue;
            }
        };
        let Some(frame) = frame else {
            view.close();
            return Ok(Some(End::default()));
        };
        if let Some(end) = take(&frame.event, &frame.data, view)? {
            view.close();
            return Ok(Some(end));
        }
    }
}

/// Cancels at once. A further interrupt does not wait for the answer.
async fn force(
    client: &Client,
    run: &str,
    view: &mut View,
    interrupts: &mut (impl Stream<Item = ()> + Unpin),
) -> anyhow::Result<()> {
    let outcome = tokio::select! {
        outcome = client.cancel(run, true) => outcome,
        Some(()) = interrupts.next() => return Ok(()),
    };
    view.close();
    match outcome {
        Ok(status) => view.say(&format!("{run} is {}", one_line(&status, 32))),
        Err(error) => view.say(&format!("not cancelled: {error}")),
    }
}

/// Shows one frame; how the run ended, when the frame tells that.
fn take(kind: &str, data: &str, view: &mut View) -> anyhow::Result<Option<End>> {
    match kind {
        "stream.truncated" => view.truncated().map(|()| None),
        "stream.snapshot" => {
            let Ok(run) = serde_json::from_str::<Run>(data) else {
                return Ok(None);
            };
            view.snapshot(&run, data)?;
            Ok(is_terminal(&run.status).then_some(End {
                status: Some(run.status),
                failure: run.error,
                step: None,
            }))
        }
        _ => {
            // Kinds that this version does not know have at least the form of events.
            let Ok(event) = serde_json::from_str::<Event>(data) else {
                return Ok(None);
            };
            view.event(&event, data)?;
            Ok(event.end().map(|status| End {
                status: Some(status.to_owned()),
                failure: told(&event),
                step: event
                    .data
                    .get("step_id")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            }))
        }
    }
}

fn told(event: &Event) -> Option<Failure> {
    let (code, message) = (event.text("code"), event.text("message"));
    (!code.is_empty() || !message.is_empty()).then(|| Failure {
        code: code.to_owned(),
        message: Some(message.to_owned()),
    })
}

/// The run as the API wrote it and as the commands read it.
pub async fn read_run(client: &Client, run: &str) -> anyhow::Result<(Box<RawValue>, Run)> {
    let raw = client.run(run).await?;
    let run = output::read(&raw)?;
    Ok((raw, run))
}
