//! Kubernetes quantities (`100Gi`, `1.5Ti`, `12e6`) as whole bytes.

/// Why a text is not a quantity of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text does not begin with a plain decimal number.
    #[error("a quantity must begin with a number")]
    Number,
    /// The suffix is not one of Kubernetes.
    #[error(
        "unknown quantity suffix: allowed are n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei and exponents"
    )]
    Suffix,
    /// The number of bytes is negative.
    #[error("a quantity of bytes must not be negative")]
    Negative,
    /// The number of bytes does not fit 63 bits.
    #[error("the quantity is too large")]
    TooLarge,
}

/// Maximum number of digits. A size never needs more.
const MAX_DIGITS: usize = 30;

/// Parses a quantity as bytes. Fractions of a byte are rounded up, as in Kubernetes.
pub fn parse_bytes(text: &str) -> Result<u64, Error> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned.starts_with('-') {
        return Err(Error::Negative);
    }
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at_checked(end).ok_or(Error::Number)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(Error::Number);
    }
    if whole.len() + fraction.len() > MAX_DIGITS {
        return Err(Error::TooLarge);
    }
    let digits: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| Error::Number)?;
    let (multiplier, exponent) = scale(suffix)?;
    let decimals = i32::try_from(fraction.len()).map_err(|_| Error::TooLarge)?;
    let exponent = exponent - decimals;
    let scaled = digits.checked_mul(multiplier).ok_or(Error::TooLarge)?;
    let bytes = match u32::try_from(exponent) {
        Ok(_) if scaled == 0 => 0,
        Ok(up) => 10u128
            .checked_pow(up)
            .and_then(|factor| scaled.checked_mul(factor))
            .ok_or(Error::TooLarge)?,
        Err(_) => match 10u128.checked_pow(exponent.unsigned_abs()) {
            Some(divisor) => scaled.div_ceil(divisor),
            None => u128::from(scaled != 0),
        },
    };
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or(Error::TooLarge)
}

/// The binary multiplier and the decimal exponent of a suffix.
fn scale(suffix: &str) -> Result<(u128, i32), Error> {
    let binary = |power: u32| Ok((1u128 << (10 * power), 0));
    let decimal = |exponent: i32| Ok((1, exponent));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(Error::Suffix)?;
            let exponent: i32 = exponent.parse().map_err(|_| Error::Suffix)?;
            if exponent.unsigned_abs() > 99 {
                return Err(Error::TooLarge);
            }
            decimal(exponent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_bytes() {
        let table = [
            ("0", Ok(0)),
            ("1", Ok(1)),
            ("100Gi", Ok(100 << 30)),
            ("1.5Ti", Ok(3 << 39)),
            ("+2Ki", Ok(2048)),
            ("9e-2147483648", Err(Error::TooLarge)),
            (".5Ki", Ok(512)),
            ("1.Ki", Ok(1024)),
            ("12e6", Ok(12_000_000)),
            ("12E6", Ok(12_000_000)),
            ("1E", Ok(1_000_000_000_000_000_000)),
            ("3k", Ok(3000)),
            ("1m", Ok(1)),
            ("1500m", Ok(2)),
            ("1n", Ok(1)),
            ("1e-99", Ok(1)),
            ("0e99", Ok(0)),
            ("7Ei", Ok(7 << 60)),
            ("8Ei", Err(Error::TooLarge)),
            ("1e99", Err(Error::TooLarge)),
            ("1e999", Err(Error::TooLarge)),
            ("-1Gi", Err(Error::Negative)),
            ("", Err(Error::Number)),
            ("Gi", Err(Error::Number)),
            (".", Err(Error::Number)),
            ("1.2.3", Err(Error::Number)),
            ("1GB", Err(Error::Suffix)),
            ("1 Gi", Err(Error::Suffix)),
            ("1K", Err(Error::Suffix)),
            ("1gi", Err(Error::Suffix)),
            ("1e", Err(Error::Suffix)),
        ];
        for (text, expected) in table {
            assert_eq!(parse_bytes(text), expected, "{text}");
        }
    }
}
