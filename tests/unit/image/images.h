// What the tests of this room share: images in memory, and the real tools.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/image/probe.h"
#include "tests/unit/bytes.h"

namespace bim::image {

// A file in memory, that counts what is read of it.
class MemoryReader : public Reader {
 public:
  explicit MemoryReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  base::Result<size_t> ReadAt(uint64_t offset,
                              std::span<std::byte> out) override {
    if (offset >= bytes_.size()) return size_t{0};
    const size_t at = static_cast<size_t>(offset);
    const size_t count = std::min(out.size(), bytes_.size() - at);
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(at), count,
                out.begin());
    bytes_read_ += count;
    return count;
  }

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  std::span<const std::byte> bytes_;
  uint64_t bytes_read_ = 0;
};

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline base::Result<ImageInfo> ProbeBytes(std::string_view content) {
  MemoryReader reader(AsBytes(content));
  return Probe(reader, content.size());
}

inline void StoreBigEndian(std::string& bytes, size_t offset, uint64_t value,
                           size_t size) {
  for (size_t i = 0; i < size; ++i) {
    bytes.at(offset + i) = static_cast<char>(value >> (8 * (size - 1 - i)));
  }
}
inline void Store32(std::string& bytes, size_t offset, uint32_t value) {
  StoreBigEndian(bytes, offset, value, 4);
}
inline void Store64(std::string& bytes, size_t offset, uint64_t value) {
  StoreBigEndian(bytes, offset, value, 8);
}
inline void StoreLittleEndian(std::string& bytes, size_t offset, uint64_t value,
                              size_t size) {
  for (size_t i = 0; i < size; ++i) {
    bytes.at(offset + i) = static_cast<char>(value >> (8 * i));
  }
}

// Where SmallQcow2 keeps its parts: one cluster of 512 bytes each.
struct SmallLayout {
  static constexpr size_t kCluster = 512;
  static constexpr size_t kRefcountTable = 512;
  static constexpr size_t kRefcountBlock = 1024;
  static constexpr size_t kL1 = 1536;
  static constexpr size_t kL2 = 2048;
  static constexpr size_t kData = 2560;  // two clusters, the last one's file
  static constexpr size_t kSize = 3584;
  static constexpr uint64_t kVirtualSize = 64 * 512;
};

// A valid version 3 qcow2, as small as can be.
inline std::string SmallQcow2() {
  using L = SmallLayout;
  std::string image(L::kSize, '\0');
  std::memcpy(image.data(), "QFI\xFB", 4);
  Store32(image, 4, 3);
  Store32(image, 20, 9);
  Store64(image, 24, L::kVirtualSize);
  Store32(image, 36, 1);
  Store64(image, 40, L::kL1);
  Store64(image, 48, L::kRefcountTable);
  Store32(image, 56, 1);
  Store32(image, 96, 4);
  Store32(image, 100, 112);
  Store64(image, L::kRefcountTable, L::kRefcountBlock);
  for (size_t i = 0; i < L::kSize / L::kCluster; ++i) {
    StoreBigEndian(image, L::kRefcountBlock + 2 * i, 1, 2);
  }
  const uint64_t copied = uint64_t{1} << 63;
  Store64(image, L::kL1, copied | L::kL2);
  Store64(image, L::kL2, copied | L::kData);
  Store64(image, L::kL2 + 8 * 7, copied | (L::kData + 512));
  std::memset(image.data() + L::kData, 'd', 1024);
  return image;
}

// A folder of its own for each test, gone afterwards, and a shell in it.
class ToolTest : public testing::Test {
 protected:
  ToolTest() {
    char name[] = "/tmp/bim_image_test.XXXXXX";
    if (mkdtemp(name) == nullptr) abort();
    folder_ = name;
  }
  ~ToolTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  static bool Have(const std::string& tool) {
    return std::system(("command -v " + tool + " >/dev/null 2>&1").c_str()) ==
           0;
  }

  // Runs `command` in the folder; what it prints on stdout. A failure fails
  // the test.
  std::string Run(const std::string& command) {
    FILE* pipe =
        popen(("cd " + folder_ + " && { " + command + "; }").c_str(), "r");
    std::string out;
    char buffer[4096];
    while (size_t n = fread(buffer, 1, sizeof(buffer), pipe)) {
      out.append(buffer, n);
    }
    EXPECT_EQ(pclose(pipe), 0) << command << "\n" << out;
    return out;
  }

  std::string Path(const std::string& name) { return folder_ + "/" + name; }

  std::string Read(const std::string& name) {
    EXPECT_TRUE(std::filesystem::exists(Path(name))) << name;
    return test::ReadAll(Path(name));
  }

 private:
  std::string folder_;
};

}  // namespace bim::image
