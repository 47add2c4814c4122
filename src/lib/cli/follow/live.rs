//! A run on a terminal: finished things as lines, running ones with a spinner each.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines;
use crate::cli::client::Event;
use crate::cli::output::{one_line, reason};

const TICK: Duration = Duration::from_millis(100);
/// Characters of what the model writes that are shown: the latest.
const MOST_WRITTEN: usize = 60;

/// What is on the terminal.
#[derive(Debug)]
pub struct Live {
    all: MultiProgress,
    /// How the run as a whole stands, below its steps.
    run: ProgressBar,
    running: BTreeMap<String, ProgressBar>,
    steps: Option<u64>,
    done: u64,
    /// The end of what the model writes, and in which of its calls.
    written: (Option<u64>, String),
}

impl Live {
    /// On standard output; `None` when that is not a terminal that can do it.
    pub fn on_terminal() -> Option<Self> {
        let live = Self::on(ProgressDrawTarget::stdout());
        (!live.all.is_hidden()).then_some(live)
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let run = spinner(&all, "waiting for the run");
        Self {
            all,
            run,
            running: BTreeMap::new(),
            steps: None,
            done: 0,
            written: (None, String::new()),
        }
    }

    /// Shows an event.
    pub fn event(&mut self, event: &Event) -> std::io::Result<()> {
        let line = lines::line(event);
        match (event.kind.as_str(), &event.step_id) {
            ("llm.delta", _) => {
                self.write(event);
                return Ok(());
            }
            ("run.queued" | "plan.started", _) => {
                let text = line.unwrap_or_default();
                self.run
                    .set_message(text.trim_start_matches("· ").to_owned());
                return Ok(());
            }
            ("run.started", _) => {
                self.steps = event.number("steps").or(self.steps);
                self.show_progress();
                return Ok(());
            }
            ("step.started", Some(step)) => {
                let bar = self.bar(step);
                bar.reset_elapsed();
                bar.set_message(lines::step_with_args(event));
                return Ok(());
            }
            ("step.retrying", Some(step)) => {
                let why = reason(event.text("message"), event.text("code"));
                let bar = self.bar(step);
                bar.reset_elapsed();
                bar.set_message(format!(
                    "{}  waits after: {}",
                    lines::step(event),
                    one_line(&why, 100)
                ));
            }
            ("step.completed" | "step.failed", Some(step)) => {
                if let Some(bar) = self.running.remove(step) {
                    self.take_away(&bar);
                }
                self.done += 1;
                self.show_progress();
            }
            _ => {}
        }
        line.map_or(Ok(()), |line| self.say(&line))
    }

    /// Shows the end of what the model writes.
    fn write(&mut self, event: &Event) {
        let (call, written) = &mut self.written;
        if *call != event.number("call") {
            (*call, *written) = (event.number("call"), String::new());
        }
        written.push_str(event.text("text"));
        let from = written.chars().count().saturating_sub(MOST_WRITTEN);
        *written = written.chars().skip(from).collect();
        let shown = one_line(written, MOST_WRITTEN + 1);
        self.run.set_message(format!("writing: {shown}"));
    }

    /// A line above the spinners.
    pub fn say(&self, line: &str) -> std::io::Result<()> {
        self.all.println(line)
    }

    /// Events were missed: what is running is not known any more.
    pub fn forget(&mut self) {
        self.clear();
        (self.steps, self.done) = (None, 0);
        self.show_progress();
    }

    /// Leaves the lines and takes the spinners away.
    pub fn close(&mut self) {
        self.clear();
        self.take_away(&self.run);
    }

    fn clear(&mut self) {
        for bar in std::mem::take(&mut self.running).into_values() {
            self.take_away(&bar);
        }
    }

    /// The bar of a step, which may be new.
    fn bar(&mut self, step: &str) -> &ProgressBar {
        let (all, run) = (&self.all, &self.run);
        self.running.entry(step.to_owned()).or_insert_with(|| {
            let bar = all.insert_before(run, ProgressBar::new_spinner());
            animate(&bar);
            bar
        })
    }

    fn take_away(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
        self.all.remove(bar);
    }

    fn show_progress(&self) {
        let text = match self.steps {
            Some(steps) => format!("executing: {} of {steps} steps done", self.done.min(steps)),
            None => "executing".to_owned(),
        };
        self.run.set_message(text);
    }
}

impl Drop for Live {
    /// Where following ends with an error, no spinner stays behind.
    fn drop(&mut self) {
        self.close();
    }
}

fn spinner(all: &MultiProgress, message: &'static str) -> ProgressBar {
    let bar = all.add(ProgressBar::new_spinner());
    animate(&bar);
    bar.set_message(message);
    bar
}

fn animate(bar: &ProgressBar) {
    let style = ProgressStyle::with_template("{spinner:.cyan} {elapsed:>3} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(TICK);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_model_writes_is_shown_from_its_end() {
        let mut live = Live::on(ProgressDrawTarget::hidden());
        let mut told = |call: u64, text: &str| {
            let data = serde_json::json!({"call": call, "text": text});
            let event = serde_json::json!({"type": "llm.delta", "data": data});
            live.event(&serde_json::from_value(event).unwrap()).unwrap();
            live.run.message()
        };
        assert_eq!(told(1, "one\n"), "writing: one");
        assert_eq!(told(1, "two"), "writing: one two");
        let words = "word ".repeat(12);
        assert_eq!(told(1, &words), format!("writing: {}", words.trim()));
        assert_eq!(told(2, "anew"), "writing: anew");
    }

    #[test]
    fn a_step_has_a_spinner_while_it_runs() {
        let mut live = Live::on(ProgressDrawTarget::hidden());
        let mut seen = Vec::new();
        for json in include_str!("recorded.jsonl").lines() {
            live.event(&serde_json::from_str(json).unwrap()).unwrap();
            let running: Vec<String> = live.running.values().map(ProgressBar::message).collect();
            let state = (live.run.message(), running.join(", "));
            if seen.last() != Some(&state) {
                seen.push(state);
            }
        }
        let state = |run: &str, running: &str| (run.to_owned(), running.to_owned());
        let (fetch, url) = ("s2 http_fetch", r#"{"url":"https://a.example/"}"#);
        let expected = [
            state("queued", ""),
            state("planning with gpt-4o-mini", ""),
            state("executing: 0 of 2 steps done", ""),
            state(
                "executing: 0 of 2 steps done",
                r#"s1 ads_metrics_mock  {"advertiser_id":"123","days":7}"#,
            ),
            state("executing: 1 of 2 steps done", ""),
            state("executing: 1 of 2 steps done", &format!("{fetch}  {url}")),
            state(
                "executing: 1 of 2 steps done",
                &format!("{fetch}  waits after: 503 from a.example (upstream_unavailable)"),
            ),
            state(
                "executing: 1 of 2 steps done",
                &format!("{fetch} (attempt 2)  {url}"),
            ),
            state("executing: 2 of 2 steps done", ""),
        ];
        assert_eq!(seen, expected);
    }
}
