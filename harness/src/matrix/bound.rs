//! A bound on a number, as matrix.toml writes it: `"<= 1100"`.

use std::fmt;
use std::str::FromStr;

/// On which side of its number a bound lets values be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Below,
    AtMost,
    AtLeast,
    Above,
}

impl Side {
    /// Two characters before one: the longest sign is the one that is meant.
    const SIGNS: [(&'static str, Side); 4] =
        [("<=", Side::AtMost), (">=", Side::AtLeast), ("<", Side::Below), (">", Side::Above)];
}

/// A bound on a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    side: Side,
    number: u32,
}

impl Bound {
    /// Whether a value keeps within the bound.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        let number = f64::from(self.number);
        match self.side {
            Side::Below => value < number,
            Side::AtMost => value <= number,
            Side::AtLeast => value >= number,
            Side::Above => value > number,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = Side::SIGNS.iter().find(|(_, side)| *side == self.side).map_or("", |(sign, _)| sign);
        write!(f, "{sign} {}", self.number)
    }
}

/// Why a text is no bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no bound: <=, >=, < or > and a whole number, such as \"<= 1100\"")]
pub struct BoundError(String);

impl FromStr for Bound {
    type Err = BoundError;

    fn from_str(text: &str) -> Result<Bound, BoundError> {
        Side::SIGNS
            .into_iter()
            .find_map(|(sign, side)| {
                let number = text.trim().strip_prefix(sign)?.trim().parse().ok()?;
                Some(Bound { side, number })
            })
            .ok_or_else(|| BoundError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_read_and_hold() {
        for (text, inside, outside) in
            [("<= 1100", 1100.0, 1100.5), (">=1100", 1100.0, 1099.9), ("< 5", 4.99, 5.0), (" > 0 ", 0.1, 0.0)]
        {
            let bound: Bound = text.parse().expect(text);
            assert!(bound.holds(inside) && !bound.holds(outside), "{text}");
            assert_eq!(bound.to_string().parse(), Ok(bound));
        }
        for text in ["", "1100", "<= ", "=< 4", "<= -1", "<= 1.5", "many"] {
            assert_eq!(text.parse::<Bound>(), Err(BoundError(text.into())), "{text}");
        }
    }
}
