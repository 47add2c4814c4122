//! Removes what is old enough by itself, again and again. Several roll-ups may do it at the same time:
//! what allows a removal is stored before it, and has one name for all of them.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;

use super::keys::{AuditSigner, PublicKeys};
use super::retention::{Expiry, expire};
use crate::config::Settings;
use crate::ids::TenantId;
use crate::runtime::clock;

const DAY_MS: u64 = 86_400_000;

/// For how many days files are kept; 0 days are for ever.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    days: u32,
    tenants: Vec<(TenantId, u32)>,
}

impl Retention {
    /// As the settings say.
    ///
    /// # Errors
    /// The name of a tenant that cannot be one.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let tenants = settings.audit_tenant_retention.iter();
        let tenants = tenants.map(|of| {
            let tenant = of.tenant.parse();
            tenant
                .map(|tenant| (tenant, of.days))
                .map_err(|_| of.tenant.clone())
        });
        Ok(Self {
            days: settings.audit_retention_days,
            tenants: tenants.collect::<Result<_, _>>()?,
        })
    }

    /// What is to be removed at `now_ms`.
    fn expiries(&self, now_ms: u64) -> Vec<Expiry> {
        let own = self.tenants.iter();
        let own = own.map(|(tenant, days)| (Some(tenant.clone()), *days));
        own.chain([(None, self.days)])
            .filter(|(_, days)| *days > 0)
            .map(|(tenant, days)| Expiry {
                except: match &tenant {
                    Some(_) => Vec::new(),
                    None => self.tenants.iter().map(|(own, _)| own.clone()).collect(),
                },
                tenant,
                before_ms: now_ms.saturating_sub(u64::from(days) * DAY_MS),
                dry_run: false,
            })
            .collect()
    }
}

/// Keeps to a [`Retention`].
#[derive(Clone)]
pub struct Keeper {
    /// Where the files are.
    pub store: Arc<dyn ObjectStore>,
    /// Signs what allows their removal.
    pub signer: AuditSigner,
    /// The keys whose manifests are believed.
    pub accepted: PublicKeys,
    /// What is kept.
    pub retention: Retention,
    /// Between two looks.
    pub interval: Duration,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// Looks until it is told to stop. What fails is logged, and tried again with the next look.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            for expiry in self.retention.expiries(clock::now_ms()) {
                let store = self.store.clone();
                let removed = tokio::select! {
                    removed = expire(store, &self.signer, &self.accepted, &expiry) => removed,
                    () = stop.cancelled() => return,
                };
                let tenant = expiry.tenant.as_ref().map(tracing::field::display);
                match removed {
                    Ok(removed) if removed.files == 0 => {}
                    Ok(removed) => tracing::info!(
                        tenant,
                        files = removed.files,
                        rows = removed.rows,
                        bytes = removed.bytes,
                        "audit files were old enough to be removed"
                    ),
                    Err(error) => tracing::error!(%error, tenant, "audit files were not removed"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_with_a_time_of_its_own_is_left_out_of_everybodys() {
        let tenant = |name: &str| name.parse::<TenantId>().unwrap();
        let retention = Retention {
            days: 30,
            tenants: vec![(tenant("long"), 400), (tenant("ever"), 0)],
        };
        let now = 1000 * DAY_MS;
        let found: Vec<_> = retention
            .expiries(now)
            .into_iter()
            .map(|e| (e.tenant, e.before_ms / DAY_MS, e.except))
            .collect();
        let expected = [
            (Some(tenant("long")), 600, vec![]),
            (None, 970, vec![tenant("long"), tenant("ever")]),
        ];
        assert_eq!(found, expected);
        assert!(Retention::default().expiries(now).is_empty());
    }
}
