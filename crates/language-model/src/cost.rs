//! Tokens, what they cost, and caps on them.
//!
//! Prices are the caller's: they change too often to be kept here. Without prices money is not counted, and a cap on money
//! is refused rather than ignored.

use std::ops::AddAssign;

pub use formats::campaign::{Caps, Prices};
use serde::{Deserialize, Serialize};

/// Tokens that prices are given for.
const PRICED: f64 = 1e6;

/// Tokens of one exchange, or of many. The parts do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt that were in no cache.
    pub input: u64,
    /// Tokens of the prompt that came from the endpoint's cache.
    pub cached_input: u64,
    /// Tokens of the prompt that were put into the cache, where the endpoint tells.
    pub cache_write: u64,
    /// Tokens of the answer, thinking included.
    pub output: u64,
    /// Whether some of it is our estimate, because the endpoint did not say.
    pub estimated: bool,
}

impl Usage {
    /// All tokens. Figures come from servers, so no sum may overflow.
    pub fn total(&self) -> u64 {
        [self.cached_input, self.cache_write, self.output].iter().fold(self.input, |sum, n| sum.saturating_add(*n))
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.cached_input = self.cached_input.saturating_add(other.cached_input);
        self.cache_write = self.cache_write.saturating_add(other.cache_write);
        self.output = self.output.saturating_add(other.output);
        self.estimated = self.estimated || other.estimated;
    }
}

/// What these tokens cost, dollars.
fn cost(prices: &Prices, usage: &Usage) -> f64 {
    let per_token = [
        (usage.input, prices.input),
        (usage.cached_input, prices.cached_input.unwrap_or(prices.input)),
        (usage.cache_write, prices.cache_write.unwrap_or(prices.input)),
        (usage.output, prices.output),
    ];
    per_token.iter().map(|(tokens, price)| *tokens as f64 * price / PRICED).sum()
}

fn all(prices: &Prices) -> [f64; 4] {
    [prices.input, prices.cached_input.unwrap_or_default(), prices.cache_write.unwrap_or_default(), prices.output]
}

/// What was spent so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Dollars; zero without prices.
    pub dollars: f64,
    /// Tokens.
    pub usage: Usage,
    /// Requests, repeated ones included.
    pub calls: u64,
}

/// Caps or prices that make no sense.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum BudgetError {
    /// A cap on money, and no prices.
    #[error(
        "a cap on dollars needs prices (dollars per million tokens for input and output); give them or drop the cap"
    )]
    NoPrices,
    /// A price or a cap that is negative or no number.
    #[error("{0} is neither a price nor a cap: dollars are finite and not negative")]
    Number(f64),
}

/// Why no further request is made.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum CapReached {
    /// Money.
    #[error(
        "the cap of ${cap:.2} is reached: ${spent:.4} are spent and the next request may cost ${next:.4}; raise it to go on"
    )]
    Dollars {
        /// The cap, dollars.
        cap: f64,
        /// Spent so far, dollars.
        spent: f64,
        /// What the next request may cost at most, dollars.
        next: f64,
    },
    /// Tokens.
    #[error(
        "the cap of {cap} tokens is reached: {spent} are spent and the next request may take {next}; raise it to go on"
    )]
    Tokens {
        /// The cap.
        cap: u64,
        /// Spent so far.
        spent: u64,
        /// What the next request may take at most.
        next: u64,
    },
    /// Requests.
    #[error("the cap of {cap} calls is reached; raise it to go on")]
    Calls {
        /// The cap.
        cap: u64,
    },
}

/// Caps, prices, and what was spent.
#[derive(Debug, Clone)]
pub struct Budget {
    caps: Caps,
    prices: Option<Prices>,
    spent: Spent,
}

impl Budget {
    /// A budget of which some may be spent already.
    ///
    /// # Errors
    /// When money is capped and has no prices, or a figure is no amount of money.
    pub fn new(caps: Caps, prices: Option<Prices>, spent: Spent) -> Result<Self, BudgetError> {
        if caps.dollars.is_some() && prices.is_none() {
            return Err(BudgetError::NoPrices);
        }
        let mut amounts = prices.iter().flat_map(all).chain(caps.dollars);
        match amounts.find(|amount| !(amount.is_finite() && *amount >= 0.0)) {
            Some(amount) => Err(BudgetError::Number(amount)),
            None => Ok(Self { caps, prices, spent }),
        }
    }

    /// Whether a request that takes at most `next` stays within every cap. Count all of the prompt as input: what will be
    /// cached is not known before. An endpoint that asks again after a broken answer takes more than one request's tokens.
    ///
    /// # Errors
    /// With the cap that it could pass.
    pub fn admit(&self, next: &Usage) -> Result<(), CapReached> {
        if let Some(cap) = self.caps.calls
            && self.spent.calls >= cap
        {
            return Err(CapReached::Calls { cap });
        }
        let (spent, more) = (self.spent.usage.total(), next.total());
        if let Some(cap) = self.caps.tokens
            && spent.saturating_add(more) > cap
        {
            return Err(CapReached::Tokens { cap, spent, next: more });
        }
        if let (Some(cap), Some(prices)) = (self.caps.dollars, &self.prices) {
            let (spent, next) = (self.spent.dollars, cost(prices, next));
            if spent + next > cap {
                return Err(CapReached::Dollars { cap, spent, next });
            }
        }
        Ok(())
    }

    /// Counts what was taken by `calls` requests, whether they gave an answer or not, and returns its price in dollars;
    /// `None` without prices.
    pub fn charge(&mut self, usage: &Usage, calls: u32) -> Option<f64> {
        let dollars = self.prices.map(|prices| cost(&prices, usage));
        self.spent.dollars += dollars.unwrap_or_default();
        self.spent.usage += *usage;
        self.spent.calls += u64::from(calls);
        dollars
    }

    /// What was spent so far.
    pub fn spent(&self) -> &Spent {
        &self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: Prices = Prices { input: 3.0, cached_input: Some(0.3), cache_write: Some(3.75), output: 15.0 };

    fn usage(input: u64, output: u64) -> Usage {
        Usage { input, output, ..Usage::default() }
    }

    #[test]
    fn every_kind_of_token_has_its_price() {
        let usage = Usage { input: 1000, cached_input: 10_000, cache_write: 2000, output: 500, estimated: false };
        let expected = 0.003 + 0.003 + 0.0075 + 0.0075;
        assert!((cost(&PRICES, &usage) - expected).abs() < 1e-12);
        let plain = Prices { cached_input: None, cache_write: None, ..PRICES };
        assert!((cost(&plain, &usage) - (0.039 + 0.0075)).abs() < 1e-12);
    }

    #[test]
    fn each_cap_refuses_before_it_is_passed() {
        let budget = |caps| Budget::new(caps, Some(PRICES), Spent::default()).expect("a budget");
        let mut dollars = budget(Caps { dollars: Some(0.02), ..Caps::default() });
        assert_eq!(dollars.admit(&usage(1000, 1000)), Ok(()));
        assert_eq!(dollars.charge(&usage(1000, 1000), 1), Some(0.018));
        assert!(matches!(dollars.admit(&usage(1000, 0)), Err(CapReached::Dollars { cap: 0.02, .. })));
        assert_eq!(dollars.admit(&usage(100, 0)), Ok(()));

        let mut tokens = budget(Caps { tokens: Some(10), ..Caps::default() });
        assert_eq!(tokens.admit(&usage(6, 4)), Ok(()));
        tokens.charge(&usage(6, 0), 1);
        assert_eq!(tokens.admit(&usage(4, 1)), Err(CapReached::Tokens { cap: 10, spent: 6, next: 5 }));

        let mut calls = budget(Caps { calls: Some(2), ..Caps::default() });
        calls.charge(&usage(1, 1), 2);
        assert_eq!(calls.admit(&usage(0, 0)), Err(CapReached::Calls { cap: 2 }));
        assert_eq!(calls.spent().calls, 2);
        assert_eq!(budget(Caps::default()).admit(&usage(u64::MAX / 2, 1)), Ok(()));
    }

    #[test]
    fn figures_that_make_no_sense_are_refused() {
        let capped = Caps { dollars: Some(1.0), ..Caps::default() };
        let refused = |caps, prices| Budget::new(caps, prices, Spent::default()).map(|_| ());
        assert_eq!(refused(capped, None), Err(BudgetError::NoPrices));
        assert_eq!(refused(capped, Some(Prices { output: -1.0, ..PRICES })), Err(BudgetError::Number(-1.0)));
        let endless = Caps { dollars: Some(f64::INFINITY), ..Caps::default() };
        assert_eq!(refused(endless, Some(PRICES)), Err(BudgetError::Number(f64::INFINITY)));
        assert_eq!(refused(Caps::default(), None), Ok(()));
    }

    #[test]
    fn an_estimate_marks_the_sum() {
        let mut sum = usage(1, 2);
        sum += Usage { estimated: true, ..usage(1, 0) };
        assert_eq!(sum, Usage { estimated: true, ..usage(2, 2) });
    }
}
