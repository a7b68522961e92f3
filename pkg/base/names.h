// Names and uuids of images and disks: what may become part of a file name.
#pragma once

#include <string>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::base {

inline constexpr size_t kMaxNameLength = 64;

// Letters, digits, "_", ".", "-"; the first one a letter or digit; no "..";
// 1 to 64 characters. INVALID_ARGUMENT says which rule `what` ("name", "uuid")
// breaks and shows the text, escaped and bounded.
Status CheckName(std::string_view text, std::string_view what);

// A random (version 4) UUID in lower case. Aborts when the kernel gives no
// random bytes.
std::string GenerateUuid();

// `text` for a message: at most `max` bytes, control characters and bytes
// beyond ASCII as \xNN.
std::string Printable(std::string_view text, size_t max = 80);

}  // namespace bim::base
