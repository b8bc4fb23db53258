//! What every layer promises: it is always ready, and it decides in `call`.
