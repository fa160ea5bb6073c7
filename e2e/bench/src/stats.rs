//! Medians and spreads of a few rounds. Pure.

use serde::Serialize;

/// The values of all rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Series(pub(crate) Vec<f64>);

impl Series {
    /// The value in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// Lowest and highest value.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let low = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (low, high)
    }

    /// Round by round, this over the other: what ran beside each other is compared with each other.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        for (values, expect) in [
            (vec![3.0], 3.0),
            (vec![9.0, 1.0, 2.0], 2.0),
            (vec![4.0, 1.0, 2.0, 3.0], 2.5),
        ] {
            assert!((Series(values).median() - expect).abs() < 1e-9);
        }
        assert!(Series(vec![]).median().is_nan());
    }

    #[test]
    fn rounds_are_compared_one_by_one() {
        let ratio = Series(vec![10.0, 20.0]).over(&Series(vec![5.0, 2.0]));
        assert_eq!(ratio.0, [2.0, 10.0]);
        assert_eq!(ratio.spread(), (2.0, 10.0));
    }
}
