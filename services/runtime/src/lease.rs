//! Leader election by a Lease of the API server.
//!
//! A lease lasts 15 s and is renewed every 5 s. A leader that cannot renew it for 10 s stops
//! leading, before another candidate may start. Candidates measure with their own clock for how
//! long the lease was not renewed, so clocks do not have to agree.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a lease is valid after its last renewal.
pub const DURATION: Duration = Duration::from_secs(15);
/// How often a leader renews the lease, and other candidates read it.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// Time without a successful renewal after which a leader stops leading.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// One candidate for one Lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// The leadership. It ends by [`Leadership::lost`] or [`Leadership::release`].
#[derive(Debug)]
pub struct Leadership {
    lost: CancellationToken,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// What a candidate does with the lease that it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The lease is free or held by this candidate: acquire or renew it.
    Take,
    /// Another candidate holds it.
    Wait,
}

/// Decides about a lease that was not renewed for `unchanged_for`, by this candidate's clock.
pub fn decide(spec: Option<&LeaseSpec>, identity: &str, unchanged_for: Duration) -> Decision {
    let Some(spec) = spec else {
        return Decision::Take;
    };
    match spec.holder_identity.as_deref() {
        None | Some("") => Decision::Take,
        Some(holder) if holder == identity => Decision::Take,
        Some(_) => {
            let seconds = spec
                .lease_duration_seconds
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(DURATION.as_secs());
            if unchanged_for >= Duration::from_secs(seconds) {
                Decision::Take
            } else {
                Decision::Wait
            }
        }
    }
}

/// The specification that `identity` writes at `now`.
fn written(old: Option<&LeaseSpec>, identity: &str, now: jiff::Timestamp) -> LeaseSpec {
    let ours = old.is_some_and(|spec| spec.holder_identity.as_deref() == Some(identity));
    let transitions = old.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if ours {
            old.and_then(|spec| spec.acquire_time.clone())
        } else {
            Some(MicroTime(now))
        },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if ours || old.is_none() {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..old.cloned().unwrap_or_default()
    }
}

/// The lease as last read, to measure for how long it was not renewed.
#[derive(Debug)]
struct Seen {
    spec: Option<LeaseSpec>,
    since: Instant,
}

impl Candidate {
    /// A candidate named `identity` (the pod's name) for the Lease `name` in `namespace`.
    pub fn new(client: kube::Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
        }
    }

    /// Waits until this candidate leads. `None` if `shutdown` comes first. Errors of the API are
    /// logged and retried.
    pub async fn lead(&self, shutdown: &CancellationToken) -> Option<Leadership> {
        let mut seen = Seen {
            spec: None,
            since: Instant::now(),
        };
        loop {
            match self.round(&mut seen).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "cannot read or renew the lease");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(RENEW_INTERVAL) => {}
            }
        }
        tracing::info!(
            lease = self.name,
            identity = self.identity,
            "acquired leadership"
        );
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(self.clone().keep(seen, lost.clone(), stop.clone()));
        Some(Leadership { lost, stop, task })
    }

    /// Reads the lease, and acquires or renews it if possible. Returns whether this candidate holds
    /// it.
    async fn round(&self, seen: &mut Seen) -> Result<bool, kube::Error> {
        let timeout = Duration::from_secs(4);
        tokio::time::timeout(timeout, self.look(seen))
            .await
            .unwrap_or_else(|_| {
                Err(kube::Error::Service(
                    "the API server did not answer in time".into(),
                ))
            })
    }

    async fn look(&self, seen: &mut Seen) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(written(None, &self.identity, jiff::Timestamp::now())),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        if lease.spec != seen.spec {
            *seen = Seen {
                spec: lease.spec.clone(),
                since: Instant::now(),
            };
        }
        if decide(lease.spec.as_ref(), &self.identity, seen.since.elapsed()) == Decision::Wait {
            return Ok(false);
        }
        lease.spec = Some(written(
            lease.spec.as_ref(),
            &self.identity,
            jiff::Timestamp::now(),
        ));
        // With the resource version of what was read, a race is a conflict.
        won(self
            .api
            .replace(&self.name, &PostParams::default(), &lease)
            .await)
    }

    async fn keep(self, mut seen: Seen, lost: CancellationToken, stop: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    self.give_back().await;
                    return;
                }
                () = tokio::time::sleep(if renewed.elapsed() < RENEW_INTERVAL { RENEW_INTERVAL } else { Duration::from_secs(1) }) => {}
            }
            let started = Instant::now();
            match self.round(&mut seen).await {
                Ok(true) => renewed = started,
                Ok(false) => {
                    tracing::error!(
                        lease = self.name,
                        "another candidate holds the lease; lost leadership"
                    );
                    lost.cancel();
                    return;
                }
                Err(error) => tracing::warn!(lease = self.name, %error, "cannot renew the lease"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                tracing::error!(
                    lease = self.name,
                    "could not renew the lease in time; lost leadership"
                );
                lost.cancel();
                return;
            }
        }
    }

    /// Clears the holder, so that the next candidate does not have to wait for the lease to expire.
    async fn give_back(&self) {
        let release = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else {
                return Ok(());
            };
            if let Some(spec) = &mut lease.spec
                && spec.holder_identity.as_deref() == Some(self.identity.as_str())
            {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                self.api
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(Duration::from_secs(4), release).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "lease released"),
            Ok(Err(error)) => {
                tracing::warn!(
                    lease = self.name, %error,
                    "cannot release the lease; it will expire"
                );
            }
            Err(_) => tracing::warn!(
                lease = self.name,
                "cannot release the lease in time; it will expire"
            ),
        }
    }
}

fn won(outcome: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match outcome {
        Ok(_) => Ok(true),
        // Another replica was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

impl Leadership {
    /// Completes when leadership is lost. The process is to end then: what it began as a leader
    /// must not go on.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Gives the lease back, at shutdown.
    pub async fn release(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the task of the lease failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_free_ours_or_run_out() {
        let seconds = Duration::from_secs;
        for (lease, unchanged, expect) in [
            (None, 0, Decision::Take),
            (Some(spec("")), 0, Decision::Take),
            (Some(spec("me")), 0, Decision::Take),
            (Some(spec("other")), 14, Decision::Wait),
            (Some(spec("other")), 15, Decision::Take),
        ] {
            assert_eq!(
                decide(lease.as_ref(), "me", seconds(unchanged)),
                expect,
                "{lease:?} after {unchanged} s"
            );
        }
    }

    #[test]
    fn renewing_keeps_the_time_of_acquisition_and_taking_over_counts() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let first = written(None, "me", at(10));
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = written(Some(&first), "me", at(20));
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_ne!(renewed.renew_time, first.renew_time);
        let taken = written(Some(&renewed), "other", at(30));
        assert_eq!(taken.lease_transitions, Some(1));
        assert_eq!(taken.acquire_time, taken.renew_time);
    }
}
