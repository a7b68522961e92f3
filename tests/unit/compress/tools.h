// What the tests of this room share: bytes, decoding in pieces, the command
// line tools.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/compress/decoder.h"
#include "tests/unit/bytes.h"
#include "tests/unit/expect_ok.h"

namespace bim::compress::test {

using bim::test::RandomBytes;
using bim::test::ReadAll;

inline constexpr uint64_t kNoLimit = ~uint64_t{0};

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Some text, some noise, some zeros: compresses like an image.
inline std::string MixedBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string out;
  out.reserve(size + 8192);
  while (out.size() < size) {
    const size_t run = 1 + random() % 4096;
    switch (random() % 3) {
      case 0:
        out.append(run, '\0');
        break;
      case 1:
        out += RandomBytes(run, random());
        break;
      default:
        for (size_t i = 0; i < run / 8; ++i) {
          out += "word" + std::to_string(random() % 100) + " ";
        }
    }
  }
  out.resize(size);
  return out;
}

struct Decoded {
  base::Status status;
  std::string bytes;
};

// `piece`: bytes that are fed at a time.
inline Decoded DecodeAll(Encoding encoding, std::string_view data, size_t piece,
                         uint64_t max_output = kNoLimit) {
  Decoded out;
  const auto decoder = MakeDecoder(encoding, max_output);
  size_t shortened = 0;
  const auto output = [&](std::span<const std::byte> bytes) {
    EXPECT_GT(bytes.size(), 0u);
    EXPECT_LE(bytes.size(), 256u * 1024);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 4096, 0u);
    if (bytes.size() < 256 * 1024) ++shortened;
    EXPECT_LE(shortened, 1u);
    out.bytes.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return base::OkStatus();
  };
  uint64_t fed = 0;
  while (!data.empty() && out.status.ok()) {
    const size_t take = std::min(piece, data.size());
    out.status = decoder->Feed(AsBytes(data.substr(0, take)), output);
    data.remove_prefix(take);
    fed += take;
    EXPECT_EQ(decoder->encoded_bytes(), fed);
  }
  if (out.status.ok()) out.status = decoder->Finish(output);
  EXPECT_EQ(decoder->decoded_bytes(), out.bytes.size());
  EXPECT_LE(out.bytes.size(), max_output);
  return out;
}

// A directory that goes away, to run the command line tools in.
class Workshop {
 public:
  Workshop() {
    std::string pattern =
        std::filesystem::temp_directory_path().string() + "/bim-test-XXXXXX";
    BIM_CHECK(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Workshop() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Workshop(const Workshop&) = delete;
  Workshop& operator=(const Workshop&) = delete;

  void Put(const std::string& name, std::string_view content) const {
    std::ofstream out(path_ + "/" + name, std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    BIM_CHECK(out.good());
  }
  // What `command` writes to its standard output, run by sh in the directory.
  std::string Output(const std::string& command) const {
    const std::string all =
        "cd '" + path_ + "' && exec > tool-output && " + command;
    const int status = std::system(all.c_str());
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << command;
    return ReadAll(path_ + "/tool-output");
  }
  // What `command` makes of `content`, its standard input.
  std::string Filter(const std::string& command,
                     std::string_view content) const {
    Put("tool-input", content);
    return Output(command + " < tool-input");
  }

 private:
  std::string path_;
};

}  // namespace bim::compress::test
