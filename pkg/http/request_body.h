// The body of a request as it comes from a socket, of known length or chunked,
// in pieces.
//
// Thread-safety: one call at a time. Nothing here blocks.
#pragma once

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace bim::http {

class RequestBody {
 public:
  using Parser =
      boost::beast::http::request_parser<boost::beast::http::buffer_body>;
  enum class Kind {
    kData,
    kBlocked,  // no byte is there for now
    kEnd,      // the whole body came
    kBroken,   // the peer closed or broke the connection, or sent no chunks
  };
  struct Piece {
    Kind kind = Kind::kBroken;
    std::span<const std::byte> data;  // of kData; valid until the next call
  };
  // (Larger buffers come fresh from the kernel for each body: page faults.)
  static constexpr size_t kPieceBytes = 64 * 1024;

  // `parser` has read the head, and `buffer` holds what came behind it; of what
  // follows the body it takes nothing out of the socket but what fits into
  // `buffer`. Both outlive this object.
  RequestBody(Parser& parser, boost::beast::flat_buffer& buffer);

  // The next piece: as much as is there, at most kPieceBytes.
  Piece Next(int socket);

 private:
  // Into out_[have, ...).
  Kind FillPlain(int socket, size_t& have);
  Kind FillChunked(int socket, size_t& have);

  Parser& parser_;
  boost::beast::flat_buffer& buffer_;
  const bool chunked_;
  uint64_t left_ = 0;       // of a body of known length
  bool need_more_ = false;  // the parser cannot use what is in buffer_ yet
  const std::unique_ptr<std::byte[]> out_;
};

}  // namespace bim::http
