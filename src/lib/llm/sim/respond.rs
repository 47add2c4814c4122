//! What the simulator answers to a conversation when no script says otherwise. Pure.

use std::fmt::Write as _;

use super::goal::understand;
use super::plan::{self, Offered};
use super::script::directive;
use super::summary::summarise;
use super::wire::{Answer, Message, Request, Role};

/// How the planner begins the message that turns a plan down.
const REJECTION: &str = "The plan was rejected";
/// How an agent's model is told that its answer is of no use.
const REFUSAL: &str = "The answer was rejected";
/// Characters of a result that are repeated in the answer that sums up.
const MAX_RESULT_CHARS: usize = 400;

const HELP: &str = "I am agenthub-llm-sim, a simulator with fixed rules and not a language model. I \
    plan goals such as: \"Get ROAS for advertiser 123 over 7 days\", \"Find what the docs say about \
    idempotency and summarise it\", \"Fetch https://example.org/ and summarise it\".";

/// The last message of the user that is not a rejection.
pub(super) fn goal<'a>(request: &'a Request<'_>) -> Option<&'a Message> {
    let users = request
        .messages
        .iter()
        .rev()
        .filter(|m| m.role == Role::User);
    users.into_iter().find(|m| {
        let text = m.text();
        let text = text.trim_start();
        !text.starts_with(REJECTION) && !text.starts_with(REFUSAL)
    })
}

/// Whether the request is for a summary of a text, which is data: no goal, and no place for scripts.
pub(super) fn wants_summary(request: &Request<'_>) -> bool {
    let instructions = instructions(request);
    let begins = |prefix: &str| {
        let beginning = instructions.trim_start().get(..prefix.len());
        beginning.is_some_and(|b| b.eq_ignore_ascii_case(prefix))
    };
    request.tools.as_ref().is_none_or(Vec::is_empty) && (begins("summarise") || begins("summarize"))
}

fn instructions(request: &Request<'_>) -> String {
    let first = request.messages.first();
    first
        .filter(|m| matches!(m.role, Role::System | Role::Developer))
        .map(|m| m.text().into_owned())
        .unwrap_or_default()
}

/// The answer by rules.
pub(super) fn answer(request: &Request<'_>) -> Answer {
    let goal = goal(request).map(Message::text).unwrap_or_default();
    if wants_summary(request) {
        // What follows the standing instructions says what the summary is for.
        let instructions = instructions(request);
        let focus = instructions.split_once('\n').map_or("", |(_, wish)| wish);
        return Answer::text(summarise(&goal, focus));
    }
    let goal = directive::without(&goal);
    let may_call = request.tool_choice.is_none_or(|c| c.get() != "\"none\"");
    let tools = request.tools.as_deref().filter(|_| may_call);
    let offered = Offered::new(tools.unwrap_or_default());

    let last_call = request
        .messages
        .iter()
        .rposition(|m| m.role == Role::Assistant);
    let since = &request.messages[last_call.map_or(0, |at| at + 1)..];
    let rejection = since
        .iter()
        .find(|m| m.text().trim_start().starts_with(REJECTION));
    if let Some(rejection) = rejection {
        let before = last_call.and_then(|at| request.messages[at].tool_calls.as_deref());
        let corrected = plan::corrected(before.unwrap_or_default(), &rejection.text(), &offered);
        return match corrected {
            Some(calls) => Answer {
                content: None,
                calls,
            },
            None => Answer::text(format!("I cannot correct this plan. {HELP}")),
        };
    }
    if since.last().is_some_and(|m| m.role == Role::Tool) {
        return Answer::text(sum_up(request, since));
    }
    let calls = plan::calls(&understand(&goal), &offered);
    if calls.is_empty() {
        return Answer::text(HELP);
    }
    Answer {
        content: None,
        calls,
    }
}

/// A final answer that repeats the results.
fn sum_up(request: &Request<'_>, since: &[Message]) -> String {
    let mut text = "Results, put together by a simulator:".to_owned();
    let calls: Vec<_> = request
        .messages
        .iter()
        .filter_map(|m| m.tool_calls.as_ref())
        .flatten()
        .collect();
    for result in since.iter().filter(|m| m.role == Role::Tool) {
        let id = result.tool_call_id.as_deref();
        let name = calls
            .iter()
            .find(|c| Some(c.id.as_str()) == id)
            .map_or("a tool", |c| c.function.name.as_str());
        let short: String = result.text().chars().take(MAX_RESULT_CHARS).collect();
        // Writing to a string does not fail.
        let _ = write!(text, "\n- {name}: {short}");
    }
    text
}
