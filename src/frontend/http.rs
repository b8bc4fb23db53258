//! One hyper service per connection: which surface is this?

use super::Body;

/// A request as hyper gives it.
pub type Request = http::Request<hyper::body::Incoming>;
/// A response as hyper takes it.
pub type Response = http::Response<Body>;
