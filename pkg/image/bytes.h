// Internal to the room: numbers out of bytes, and bytes into messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace bim::image {

using Bytes = std::span<const std::byte>;

// The unsigned number at `offset`. Precondition: it lies within `bytes`.
template <typename T>
T LoadBigEndian(Bytes bytes, size_t offset) {
  T value = 0;
  for (std::byte b : bytes.subspan(offset, sizeof(T))) {
    value = static_cast<T>((value << 8) | std::to_integer<T>(b));
  }
  return value;
}

template <typename T>
T LoadLittleEndian(Bytes bytes, size_t offset) {
  T value = 0;
  for (size_t i = sizeof(T); i-- > 0;) {
    value =
        static_cast<T>((value << 8) | std::to_integer<T>(bytes[offset + i]));
  }
  return value;
}

// True if `text` (any bytes, NUL included) stands at `offset`; false if `bytes`
// ends before.
bool HasAt(Bytes bytes, size_t offset, std::string_view text);

// The length of the UTF-8 character that `bytes` begins with (1 to 4), or 0 if
// there is none: overlong, a surrogate, beyond U+10FFFF, broken or cut off.
size_t Utf8Length(Bytes bytes);

// The first `max_characters` of untrusted bytes, in double quotes, fit for a
// log: valid UTF-8, runs of white space as one space, everything that does not
// print (or reorders what does) as \xNN; "..." if there was more.
std::string Quote(Bytes bytes, size_t max_characters = 60);
std::string Quote(std::string_view text, size_t max_characters = 60);

}  // namespace bim::image
