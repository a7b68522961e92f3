// The Range header of a request (RFC 9110 14.1.2, 14.2), one range of bytes.
// Pure.
#pragma once

#include <cstdint>
#include <string_view>

namespace bim::http {

struct ByteRange {
  enum class Kind {
    kWhole,          // no range, or one that must be ignored: answer 200
    kPart,           // [begin, end): answer 206
    kUnsatisfiable,  // answer 416
  };
  Kind kind = Kind::kWhole;
  uint64_t begin = 0;
  uint64_t end = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

// What `header` selects of a body of `size` bytes: "bytes=a-b", "bytes=a-" or
// "bytes=-n", the unit in any case, no spaces. Several ranges, other units and
// anything malformed (also a > b) are kWhole.
ByteRange SelectRange(std::string_view header, uint64_t size);

}  // namespace bim::http
