#include "pkg/http/request_body.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <cerrno>

namespace bim::http {
namespace {

namespace asio = boost::asio;

struct Received {
  size_t bytes = 0;
  RequestBody::Kind kind = RequestBody::Kind::kData;  // kData: bytes > 0
};

Received Receive(int socket, void* data, size_t size) {
  while (true) {
    const ssize_t count = ::recv(socket, data, size, MSG_DONTWAIT);
    if (count > 0) return {static_cast<size_t>(count)};
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return {0, RequestBody::Kind::kBlocked};
    return {0, RequestBody::Kind::kBroken};
  }
}

}  // namespace

RequestBody::RequestBody(Parser& parser, boost::beast::flat_buffer& buffer)
    : parser_(parser),
      buffer_(buffer),
      chunked_(parser.chunked()),
      left_(parser.content_length().value_or(0)),
      out_(new std::byte[kPieceBytes]) {}

RequestBody::Piece RequestBody::Next(int socket) {
  size_t have = 0;
  const Kind kind =
      chunked_ ? FillChunked(socket, have) : FillPlain(socket, have);
  // What stopped it comes again at the next call.
  if (have > 0) return {Kind::kData, {out_.get(), have}};
  return {kind, {}};
}

RequestBody::Kind RequestBody::FillPlain(int socket, size_t& have) {
  if (left_ == 0) return Kind::kEnd;
  const size_t want =
      static_cast<size_t>(std::min<uint64_t>(kPieceBytes, left_));
  have = asio::buffer_copy(asio::buffer(out_.get(), want), buffer_.data());
  buffer_.consume(have);
  Received got;
  while (have < want && got.kind == Kind::kData) {
    got = Receive(socket, out_.get() + have, want - have);
    have += got.bytes;
  }
  left_ -= have;
  return got.kind;
}

RequestBody::Kind RequestBody::FillChunked(int socket, size_t& have) {
  using HttpError = boost::beast::http::error;
  auto& body = parser_.get().body();
  while (have < kPieceBytes && !parser_.is_done()) {
    if (need_more_ || buffer_.size() == 0) {
      const size_t room = buffer_.max_size() - buffer_.size();
      if (room == 0) return Kind::kBroken;  // a line without end
      const auto space = buffer_.prepare(room);
      const Received got = Receive(socket, space.data(), space.size());
      if (got.kind != Kind::kData) return got.kind;
      buffer_.commit(got.bytes);
      need_more_ = false;
    }
    body.data = out_.get() + have;
    body.size = kPieceBytes - have;
    body.more = true;
    boost::system::error_code error;
    const size_t used = parser_.put(buffer_.data(), error);
    buffer_.consume(used);
    have = kPieceBytes - body.size;
    need_more_ = error == HttpError::need_more;
    if (error && !need_more_ && error != HttpError::need_buffer)
      return Kind::kBroken;
  }
  return parser_.is_done() ? Kind::kEnd : Kind::kData;
}

}  // namespace bim::http
