//! What tenants may spend and what they used, for admins: of their own tenant, and of any by the
//! operator's keys.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Json;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::JsonBody;
use super::caller::Caller;
use super::governed;
use super::params::{Params, PathId};
use super::state::ApiState;
use super::time::{month_end, rfc3339};
use crate::error::ApiError;
use crate::governance::Permission;
use crate::ids::TenantId;
use crate::runs::{Spending, Use, User};
use crate::runtime::clock;

const MAX_DAYS: usize = 366;
/// The scripts count in doubles: whole numbers are exact to 2^53.
const MAX_LIMIT: u64 = 1 << 52;

/// The time after which a budget begins anew.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Window {
    /// The calendar month, UTC.
    #[default]
    Month,
}

/// A tenant's budget to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BudgetRequest {
    /// Millionths of a US dollar; `null` takes the limit away.
    #[schema(maximum = 4_503_599_627_370_496_u64)]
    #[serde(deserialize_with = "given")]
    limit_micro_usd: Option<u64>,
    /// When it begins anew.
    #[serde(default)]
    window: Window,
}

/// `null` is said, not left out.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(deserializer)
}

/// A tenant's budget, and where it stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BudgetBody {
    /// Millionths of a US dollar in each window; `null` when there is no limit.
    limit_micro_usd: Option<u64>,
    /// When it begins anew.
    window: Window,
    /// Spent in this window.
    spent_micro_usd: u64,
    /// Held for calls under way.
    reserved_micro_usd: u64,
    /// When this window ends.
    resets_at: String,
}

impl From<Spending> for BudgetBody {
    fn from(spending: Spending) -> Self {
        Self {
            limit_micro_usd: spending.limit,
            window: Window::Month,
            spent_micro_usd: spending.spent,
            reserved_micro_usd: spending.reserved,
            resets_at: rfc3339(month_end(clock::now_ms())),
        }
    }
}

/// What usage is summed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum By {
    /// One sum for the tenant.
    Tenant,
    /// Days, UTC.
    Day,
    /// Keys.
    Key,
    /// Models.
    Model,
    /// Sessions.
    Session,
}

impl std::str::FromStr for By {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "tenant" => Self::Tenant,
            "day" => Self::Day,
            "key" => Self::Key,
            "model" => Self::Model,
            "session" => Self::Session,
            _ => return Err(()),
        })
    }
}

/// Model calls and what they used.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(super) struct UseBody {
    /// Model calls.
    calls: u64,
    /// Tokens read.
    input_tokens: u64,
    /// Of those, read from the provider's cache.
    cached_tokens: u64,
    /// Tokens written.
    output_tokens: u64,
    /// Of those, spent on reasoning.
    reasoning_tokens: u64,
    /// Millionths of a US dollar.
    cost_micro_usd: u64,
}

impl From<Use> for UseBody {
    fn from(used: Use) -> Self {
        Self {
            calls: used.calls,
            input_tokens: used.input_tokens,
            cached_tokens: used.cached_tokens,
            output_tokens: used.output_tokens,
            reasoning_tokens: used.reasoning_tokens,
            cost_micro_usd: used.cost_micro_usd,
        }
    }
}

/// One sum.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageRow {
    /// The tenant, day (`YYYY-MM-DD`), key, model or session.
    name: String,
    #[serde(flatten)]
    used: UseBody,
}

/// What a tenant used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageBody {
    /// The first day, UTC.
    #[schema(value_type = String, format = Date)]
    from: Date,
    /// The last day, UTC.
    #[schema(value_type = String, format = Date)]
    to: Date,
    /// What it is summed by.
    by: By,
    /// Everything.
    total: UseBody,
    /// Ordered by name.
    data: Vec<UsageRow>,
}

/// Set what a tenant may spend.
#[utoipa::path(put, path = "/v1/admin/tenants/{tenant}/budget", tag = "admin", request_body = BudgetRequest,
    params(("tenant" = String, Path, description = "The tenant.")),
    responses((status = 200, description = "Set; it holds from the next call on.", body = BudgetBody)))]
pub(super) async fn set(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<TenantId>,
    _: Params,
    body: JsonBody<BudgetRequest>,
) -> Result<Json<BudgetBody>, ApiError> {
    let BudgetRequest {
        limit_micro_usd,
        window: Window::Month,
    } = body.value;
    if limit_micro_usd.is_some_and(|limit| limit > MAX_LIMIT) {
        let problem = format!("expected 0 to {MAX_LIMIT}");
        return Err(ApiError::field("/limit_micro_usd", problem));
    }
    state.require_kafka()?;
    let tenant = governed::in_path(&state, &caller, Permission::Budgets, id).await?;
    let spending = state.parts.budgets.set(&tenant, limit_micro_usd).await?;
    Ok(Json(spending.into()))
}

/// Read a tenant's budget and where it stands.
#[utoipa::path(get, path = "/v1/admin/tenants/{tenant}/budget", tag = "admin",
    params(("tenant" = String, Path, description = "The tenant.")),
    responses((status = 200, description = "The budget.", body = BudgetBody)))]
pub(super) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<TenantId>,
    _: Params,
) -> Result<Json<BudgetBody>, ApiError> {
    let tenant = governed::in_path(&state, &caller, Permission::Budgets, id).await?;
    Ok(Json(state.parts.budgets.get(&tenant).await?.into()))
}

/// Sum what a tenant used.
#[utoipa::path(get, path = "/v1/admin/tenants/{tenant}/usage", tag = "admin",
    params(("tenant" = String, Path, description = "The tenant."),
        ("from" = Option<String>, Query, format = Date, description = "The first day, UTC; that of the current month when absent."),
        ("to" = Option<String>, Query, format = Date, description = "The last day, UTC; today when absent. At most 366 days."),
        ("by" = Option<By>, Query, description = "What it is summed by: `day` when absent.")),
    responses((status = 200, description = "The sums.", body = UsageBody)))]
pub(super) async fn usage(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<TenantId>,
    uri: Uri,
) -> Result<Json<UsageBody>, ApiError> {
    let params = Params::read(&uri, &["from", "to", "by"])?;
    let today = TimeZone::UTC.to_datetime(Timestamp::now()).date();
    let day = "a day such as 2026-01-31";
    let to = params.parsed::<Date>("to", day)?.unwrap_or(today);
    let from = params.parsed::<Date>("from", day)?;
    let from = from.unwrap_or_else(|| to.first_of_month());
    let by = params.parsed::<By>("by", "tenant, day, key, model or session")?;
    let by = by.unwrap_or(By::Day);
    let days = days(from, to)?;
    let tenant = governed::in_path(&state, &caller, Permission::Budgets, id).await?;
    let names: Vec<String> = days
        .iter()
        .map(|d| d.strftime("%Y%m%d").to_string())
        .collect();
    let used = state.runs().used(&tenant, &names).await?;
    let (total, sums) = sum(&tenant, by, days.into_iter().zip(used));
    let row = |(name, used): (String, Use)| UsageRow {
        name: state.exit.text(&name),
        used: used.into(),
    };
    Ok(Json(UsageBody {
        from,
        to,
        by,
        total: total.into(),
        data: sums.into_iter().map(row).collect(),
    }))
}

fn days(from: Date, to: Date) -> Result<Vec<Date>, ApiError> {
    let days: Vec<Date> = from
        .series(1.day())
        .take_while(|day| *day <= to)
        .take(MAX_DAYS + 1)
        .collect();
    match days.len() {
        0 => Err(ApiError::field(
            "to",
            "expected a day that is not before `from`",
        )),
        1..=MAX_DAYS => Ok(days),
        _ => Err(ApiError::field("from", format!("at most {MAX_DAYS} days"))),
    }
}

/// The total, and the sums by what is asked for.
fn sum(
    tenant: &TenantId,
    by: By,
    days: impl Iterator<Item = (Date, Vec<(User, Use)>)>,
) -> (Use, BTreeMap<String, Use>) {
    let (mut total, mut sums) = (Use::default(), BTreeMap::<String, Use>::new());
    for (day, users) in days {
        for (user, used) in users {
            // Each call is counted once by its key and model, and once by its session.
            let name = match (by, user) {
                (By::Session, User::Session(session)) => session.to_string(),
                (By::Session, User::Key(..)) => {
                    total += used;
                    continue;
                }
                (_, User::Session(_)) => continue,
                (by, User::Key(key, model)) => {
                    total += used;
                    match by {
                        By::Key => key.to_string(),
                        By::Model => model,
                        By::Day => day.to_string(),
                        By::Tenant | By::Session => tenant.to_string(),
                    }
                }
            };
            *sums.entry(name).or_default() += used;
        }
    }
    (total, sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{KeyId, SessionId};

    #[test]
    fn usage_is_summed_by_what_is_asked_for() {
        let tenant: TenantId = "acme".parse().unwrap();
        let (key, session) = (KeyId::generate(), SessionId::generate());
        let used = |cost_micro_usd| Use {
            calls: 1,
            cost_micro_usd,
            ..Use::default()
        };
        let days = || {
            [
                (
                    "2026-01-31".parse().unwrap(),
                    vec![
                        (User::Key(key.clone(), "a".into()), used(1)),
                        (User::Key(key.clone(), "b".into()), used(2)),
                        (User::Session(session.clone()), used(3)),
                    ],
                ),
                (
                    "2026-02-01".parse().unwrap(),
                    vec![
                        (User::Key(key.clone(), "a".into()), used(4)),
                        (User::Session(session.clone()), used(4)),
                    ],
                ),
            ]
            .into_iter()
        };
        for (by, expected) in [
            (By::Tenant, vec![("acme".to_owned(), 7)]),
            (
                By::Day,
                vec![("2026-01-31".into(), 3), ("2026-02-01".into(), 4)],
            ),
            (By::Key, vec![(key.to_string(), 7)]),
            (By::Model, vec![("a".into(), 5), ("b".into(), 2)]),
            (By::Session, vec![(session.to_string(), 7)]),
        ] {
            let (total, sums) = sum(&tenant, by, days());
            assert_eq!(total.cost_micro_usd, 7, "{by:?}");
            let sums: Vec<_> = sums
                .into_iter()
                .map(|(n, u)| (n, u.cost_micro_usd))
                .collect();
            assert_eq!(sums, expected, "{by:?}");
        }
    }

    #[test]
    fn days_are_in_order_and_bounded() {
        let date = |text: &str| text.parse::<Date>().unwrap();
        assert_eq!(
            days(date("2026-02-27"), date("2026-03-01")).unwrap().len(),
            3
        );
        assert!(days(date("2026-03-01"), date("2026-02-27")).is_err());
        assert!(days(date("2024-01-01"), date("2024-12-31")).is_ok());
        assert!(days(date("2024-01-01"), date("2025-01-01")).is_err());
    }
}
