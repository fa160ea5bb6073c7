//! The pauses between requests for an image: pure.

use holdfast_api::artifact::Reason;
use std::time::Duration;

/// The pause after the `failures`th failure in a row (from 1), doubling from two seconds up to a
/// limit that depends on what went wrong, plus or minus a fifth by `dice` (0 to 1), and never less
/// than the registry asked for.
///
/// Failures that need a person are retried rarely; those that may end by themselves, such as an
/// outage, are retried soon.
pub fn pause(
    reason: Reason,
    failures: u32,
    retry_after: Option<Duration>,
    dice: f64,
) -> Option<Duration> {
    let limit = match reason {
        Reason::Copied | Reason::Invalid | Reason::NoDemand | Reason::TooManyArtifacts => {
            return None;
        }
        Reason::Copying => 1,
        Reason::RegistryUnavailable | Reason::PullSecretUnreadable => 15,
        Reason::UpstreamUnavailable | Reason::NoSpace | Reason::StoreFailed | Reason::Busy => 60,
        Reason::Unauthorized | Reason::UpstreamInvalid => 300,
        Reason::NotFound => 600,
    };
    let doubled = 2_u64.saturating_pow(failures.clamp(1, 16)).min(limit);
    let spread = Duration::from_secs(doubled).mul_f64(0.8 + 0.4 * dice.clamp(0.0, 1.0));
    // A requested pause is bounded by an hour.
    Some(
        spread.max(
            retry_after
                .unwrap_or_default()
                .min(Duration::from_secs(3600)),
        ),
    )
}

/// For how long the registry's confirmation of an image is valid: ten to fifteen minutes, by `dice`
/// (0 to 1), so that requests for many images are spread. A request causes no upstream request
/// while the image is local (SPEC 14). After a loss of the volume, these requests fill it again.
pub fn confirm_again(dice: f64) -> Duration {
    Duration::from_secs(600) + Duration::from_secs(300).mul_f64(dice.clamp(0.0, 1.0))
}

/// A random number from 0 to 1; 0.5 if the system has no random bytes.
pub fn dice() -> f64 {
    let mut byte = [0_u8; 2];
    match getrandom::fill(&mut byte) {
        Ok(()) => f64::from(u16::from_le_bytes(byte)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reason: Reason, failures: u32, after: Option<u64>, expect: Option<u64>) {
        let pause = pause(reason, failures, after.map(Duration::from_secs), 0.5);
        assert_eq!(
            pause.map(|pause| pause.as_secs()),
            expect,
            "{reason} after {failures}"
        );
    }

    #[test]
    fn pauses_double_up_to_a_limit_by_reason() {
        check(Reason::UpstreamUnavailable, 1, None, Some(2));
        check(Reason::UpstreamUnavailable, 3, None, Some(8));
        check(Reason::UpstreamUnavailable, 99, None, Some(60));
        check(Reason::NotFound, 99, None, Some(600));
        check(Reason::RegistryUnavailable, 99, None, Some(15));
        check(Reason::PullSecretUnreadable, 99, None, Some(15));
        check(Reason::StoreFailed, 99, None, Some(60));
        check(Reason::Copied, 0, None, None);
        check(Reason::Invalid, 1, None, None);
    }

    #[test]
    fn retry_after_is_the_minimum_pause_up_to_an_hour() {
        check(Reason::UpstreamUnavailable, 1, Some(30), Some(30));
        check(Reason::UpstreamUnavailable, 99, Some(30), Some(60));
        check(Reason::UpstreamUnavailable, 1, Some(86_400), Some(3600));
    }

    #[test]
    fn a_confirmation_holds_for_ten_to_fifteen_minutes() {
        let at = |dice| confirm_again(dice).as_secs();
        assert_eq!((at(0.0), at(0.5), at(1.0)), (600, 750, 900));
    }

    #[test]
    fn pauses_are_spread_by_a_fifth() {
        let at = |dice| {
            pause(Reason::UpstreamUnavailable, 99, None, dice)
                .unwrap()
                .as_secs()
        };
        assert_eq!((at(0.0), at(1.0)), (48, 72));
        assert!((0.0..=1.0).contains(&dice()));
    }
}
