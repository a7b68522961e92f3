// What the tests of the rooms from store on share: a directory that goes away,
// a disk in it, bytes, and digests computed by another way than the product's.
#pragma once

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "pkg/base/digest.h"
#include "pkg/base/status.h"
#include "pkg/io/dir.h"
#include "pkg/store/disk.h"
#include "pkg/store/layout.h"
#include "tests/unit/bytes.h"
#include "tests/unit/expect_ok.h"

namespace bim::test {

// In memory where there is such a file system: tests make many files durable.
// `on_disk` asks for the ordinary temporary directory.
class TempDir {
 public:
  explicit TempDir(bool on_disk = false) {
    const bool memory = !on_disk && ::access("/dev/shm", W_OK) == 0;
    std::string pattern =
        (memory ? "/dev/shm"
                : std::filesystem::temp_directory_path().string()) +
        "/bim-test-XXXXXX";
    BIM_CHECK(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view relative) const {
    return path_ + "/" + std::string(relative);
  }

 private:
  std::string path_;
};

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline base::Digest EvpDigest(base::DigestAlgorithm algorithm,
                              std::string_view text) {
  unsigned char out[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  BIM_CHECK(EVP_Digest(text.data(), text.size(), out, &size,
                       algorithm == base::DigestAlgorithm::kSha256
                           ? EVP_sha256()
                           : EVP_sha512(),
                       nullptr) == 1);
  return base::Digest(algorithm, std::as_bytes(std::span(out, size)));
}
inline base::Digest Sha512(std::string_view text) {
  return EvpDigest(base::DigestAlgorithm::kSha512, text);
}
inline base::Digest Sha256(std::string_view text) {
  return EvpDigest(base::DigestAlgorithm::kSha256, text);
}

inline void WriteAll(const std::string& path, std::string_view content) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  BIM_CHECK(out.good());
}
// Changes one byte in place.
inline void FlipByte(const std::string& path, uint64_t offset) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const char c = static_cast<char>(file.get());
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(static_cast<char>(c ^ 0x40));
  file.close();
  BIM_CHECK(file.good());
}
inline bool Exists(const std::string& path) {
  struct stat st = {};
  return ::lstat(path.c_str(), &st) == 0;
}
inline uint64_t AllocatedBytes(const std::string& path) {
  struct stat st = {};
  BIM_CHECK(::stat(path.c_str(), &st) == 0);
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

inline void InitDisk(const std::string& path, const std::string& uuid) {
  std::filesystem::create_directories(path);
  auto root = io::Dir::Open(path);
  BIM_CHECK(root.ok());
  BIM_CHECK(store::InitIdentity(*root, uuid).ok());
}

inline std::shared_ptr<store::Disk> ClaimDisk(const std::string& path) {
  auto claimed = store::Disk::Claim(path, "", {"manager-1", "0.0", "unix:x"});
  if (auto* fault = std::get_if<store::DiskFault>(&claimed)) {
    ADD_FAILURE() << fault->message;
    return nullptr;
  }
  return std::get<std::shared_ptr<store::Disk>>(claimed);
}

// A directory that is a claimed disk.
struct ScratchDisk {
  explicit ScratchDisk(bool on_disk = false) : dir(on_disk) {
    InitDisk(dir.path(), "disk-1");
    disk = ClaimDisk(dir.path());
  }
  std::string Path(const std::string& relative) const { return dir / relative; }
  // Lets go of the lock and takes it again, as another process would.
  void Restart() {
    disk.reset();
    disk = ClaimDisk(dir.path());
  }
  TempDir dir;
  std::shared_ptr<store::Disk> disk;
};

}  // namespace bim::test
