#include "pkg/store/record.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>

#include "pkg/hash/hasher.h"
#include "pkg/meta/version.h"

namespace bim::store {
namespace {

using base::DataLossError;
using base::Digest;
using base::DigestAlgorithm;
using base::Result;
using base::Status;
using nlohmann::json;

constexpr char kRecordMagic[] = "bim-record";
constexpr char kJournalMagic[] = "bim-journal";
constexpr char kManifestMagic[] = "bim-manifest";
constexpr size_t kMaxLine = 256;
constexpr size_t kMaxHeader = 64 * 1024;
constexpr size_t kMaxTable = size_t{kMaxChunks} * 33;
constexpr size_t kEntrySize = 48;
constexpr size_t kMaxJournal =
    kMaxLine + kMaxHeader + size_t{kMaxChunks} * 4 * kEntrySize;
constexpr size_t kMaxConfig = 64 * 1024;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Paths may hold any bytes: what is no UTF-8 is replaced, never thrown about.
template <typename Json>
std::string Dump(const Json& object) {
  return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Sha256Hex(std::string_view text) {
  return hash::HashOf(DigestAlgorithm::kSha256, Bytes(text)).Hex();
}

std::string Envelope(const char* magic, const std::string& header) {
  return std::string(magic) + " " + std::to_string(meta::kDiskFormatVersion) +
         " " + std::to_string(meta::kDiskFormatMinVersion) + " " +
         std::to_string(header.size()) + " " + Sha256Hex(header) + "\n" +
         header;
}

struct Opened {
  json header;
  std::string rest;
};

// OUT_OF_RANGE: without the rest, `text` does not hold the whole header.
Result<Opened> ParseEnvelope(std::string text, const std::string& shown,
                             const char* magic, bool with_rest) {
  const size_t newline = text.substr(0, kMaxLine).find('\n');
  char found[16] = {};
  int version = 0, min_version = 0;
  size_t length = 0;
  char digest[65] = {};
  if (newline == std::string::npos ||
      std::sscanf(text.substr(0, newline).c_str(), "%15s %9d %9d %9zu %64s",
                  found, &version, &min_version, &length, digest) != 5) {
    return DataLossError(shown + " is damaged: it does not begin with '" +
                         std::string(magic) + "'");
  }
  if (std::strcmp(found, magic) != 0) {
    if (std::strcmp(found, kRecordMagic) == 0 ||
        std::strcmp(found, kJournalMagic) == 0) {
      return base::NotFoundError(shown + " is no " + magic);
    }
    return DataLossError(shown + " is damaged: expected '" + magic +
                         "' at its begin");
  }
  if (min_version > meta::kDiskFormatVersion) {
    return base::FailedPreconditionError(
        shown + " has format " + std::to_string(version) +
        ", readable from version " + std::to_string(min_version) +
        " on; this program reads up to " +
        std::to_string(meta::kDiskFormatVersion));
  }
  if (length > kMaxHeader) return DataLossError(shown + " is damaged: header");
  if (newline + 1 + length > text.size()) {
    return with_rest ? DataLossError(shown + " is cut off")
                     : base::OutOfRangeError("a longer header");
  }
  const std::string header = text.substr(newline + 1, length);
  if (Sha256Hex(header) != digest) {
    return DataLossError(shown + " is damaged: its header has another digest");
  }
  Opened opened;
  opened.header = json::parse(header, nullptr, false);
  if (!opened.header.is_object()) {
    return DataLossError(shown + " is damaged: its header is no JSON object");
  }
  if (with_rest) {
    text.erase(0, newline + 1 + length);
    opened.rest = std::move(text);
  }
  return opened;
}

// Reads line, header and (with `with_rest`) what follows.
Result<Opened> OpenEnvelope(const io::Dir& disk, const std::string& path,
                            const char* magic, size_t max_rest,
                            bool with_rest) {
  std::string text;
  if (with_rest) {
    BIM_ASSIGN_OR_RETURN(text,
                         disk.ReadFile(path, kMaxLine + kMaxHeader + max_rest));
  } else {
    BIM_ASSIGN_OR_RETURN(base::UniqueFd fd,
                         disk.OpenFile(path, O_RDONLY | O_NONBLOCK));
    // Nearly every header is far below 4 KiB.
    text.resize(4096);
    BIM_ASSIGN_OR_RETURN(size_t count,
                         io::PreadFull(fd.get(), text.data(), text.size(), 0,
                                       disk.path() + "/" + path));
    text.resize(count);
  }
  const std::string shown = disk.path() + "/" + path;
  auto opened = ParseEnvelope(std::move(text), shown, magic, with_rest);
  if (!with_rest && !opened.ok() &&
      opened.status().code() == base::Code::kOutOfRange) {
    return OpenEnvelope(disk, path, magic, max_rest, true);
  }
  return opened;
}

template <typename T>
T Value(const json& object, const char* key, T fallback) {
  const auto it = object.find(key);
  if (it == object.end()) return fallback;
  if constexpr (std::is_same_v<T, std::string>) {
    return it->is_string() ? it->template get<std::string>() : fallback;
  } else if constexpr (std::is_unsigned_v<T>) {
    // A negative number would become a huge one.
    return it->is_number_unsigned() ? it->template get<T>() : fallback;
  } else {
    return it->is_number_integer() ? it->template get<T>() : fallback;
  }
}

int64_t Nanoseconds(const struct timespec& time) {
  return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

uint64_t LoadLittle(const char* at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) {
    value |= static_cast<uint64_t>(static_cast<unsigned char>(at[i]))
             << (8 * i);
  }
  return value;
}

void StoreLittle(std::string& out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  }
}

}  // namespace

FileStamp StampOf(const struct stat& st) {
  return {.size = static_cast<uint64_t>(st.st_size),
          .inode = st.st_ino,
          .mtime_ns = Nanoseconds(st.st_mtim),
          .ctime_ns = Nanoseconds(st.st_ctim)};
}

bool Matches(const FileStamp& recorded, const FileStamp& now) {
  return recorded.size == now.size && recorded.inode == now.inode &&
         recorded.mtime_ns == now.mtime_ns &&
         (recorded.ctime_ns == 0 || recorded.ctime_ns == now.ctime_ns);
}

std::string EncodeRecord(const ImageRecord& record) {
  const std::string table = EncodeChunks(record.chunks);
  json header = {
      {"name", record.key.name},
      {"uuid", record.key.uuid},
      {"size", record.stamp.size},
      {"inode", record.stamp.inode},
      {"mtimeNs", record.stamp.mtime_ns},
      {"ctimeNs", record.stamp.ctime_ns},
      {"format", record.format},
      {"virtualSize", record.virtual_size},
      {"sha512", record.sha512.Hex()},
      {"origin", record.origin},
      {"verifiedNs", record.verified_ns},
      {"chunkSize", record.chunk_size},
      {"chunkCount", record.chunks.size()},
      {"chunksSha256", Sha256Hex(table)},
  };
  if (record.sha256) header["sha256"] = record.sha256->Hex();
  if (record.sha512_pending) header["sha512Pending"] = true;
  return Envelope(kRecordMagic, Dump(header)) + table;
}

std::string EncodeManifest(const ImageRecord& record) {
  const std::string table = EncodeChunks(record.chunks);
  json header = {
      {"name", record.key.name},
      {"uuid", record.key.uuid},
      {"size", record.stamp.size},
      {"format", record.format},
      {"virtualSize", record.virtual_size},
      {"sha512", record.sha512.Hex()},
      {"chunkSize", record.chunk_size},
      {"chunkCount", record.chunks.size()},
      {"chunksSha256", Sha256Hex(table)},
  };
  if (record.sha256) header["sha256"] = record.sha256->Hex();
  return Envelope(kManifestMagic, Dump(header)) + table;
}

namespace {

// What record and manifest have in common; the table only `with_chunks`.
Result<ImageRecord> ParseRecord(const Opened& opened, const std::string& shown,
                                bool with_chunks) {
  const json& header = opened.header;
  ImageRecord record;
  record.key = {Value<std::string>(header, "name", ""),
                Value<std::string>(header, "uuid", "")};
  record.stamp = {Value<uint64_t>(header, "size", 0),
                  Value<uint64_t>(header, "inode", 0),
                  Value<int64_t>(header, "mtimeNs", 0),
                  Value<int64_t>(header, "ctimeNs", 0)};
  record.format = Value<std::string>(header, "format", "");
  record.virtual_size = Value<uint64_t>(header, "virtualSize", 0);
  const auto digest = [&](DigestAlgorithm algorithm,
                          const char* name) -> Result<Digest> {
    auto found =
        Digest::FromHex(algorithm, Value<std::string>(header, name, ""));
    if (found.ok()) return found;
    return DataLossError(shown + " is damaged: " + found.status().message());
  };
  BIM_ASSIGN_OR_RETURN(record.sha512,
                       digest(DigestAlgorithm::kSha512, "sha512"));
  if (header.contains("sha256")) {
    BIM_ASSIGN_OR_RETURN(record.sha256,
                         digest(DigestAlgorithm::kSha256, "sha256"));
  }
  const auto pending = header.find("sha512Pending");
  record.sha512_pending = pending != header.end() && *pending == true;
  record.origin = Value<std::string>(header, "origin", "");
  record.verified_ns = Value<int64_t>(header, "verifiedNs", 0);
  record.chunk_size = Value<uint64_t>(header, "chunkSize", 0);
  const uint64_t chunk_count = Value<uint64_t>(header, "chunkCount", 0);
  if (chunk_count > kMaxChunks) {
    return DataLossError(shown + " is damaged: it has " +
                         std::to_string(chunk_count) + " chunks, at most " +
                         std::to_string(kMaxChunks) + " are possible");
  }
  record.chunk_count = static_cast<uint32_t>(chunk_count);
  if (with_chunks && record.chunk_count > 0) {
    if (Sha256Hex(opened.rest) !=
        Value<std::string>(header, "chunksSha256", "")) {
      return DataLossError(shown + " is damaged: its chunk table");
    }
    BIM_ASSIGN_OR_RETURN(record.chunks, DecodeChunks(opened.rest));
    if (record.chunks.size() != chunk_count) {
      return DataLossError(shown + " is damaged: its header says " +
                           std::to_string(chunk_count) +
                           " chunks, its table has " +
                           std::to_string(record.chunks.size()));
    }
    BIM_RETURN_IF_ERROR(
        CheckChunks(record.stamp.size, record.chunk_size, record.chunks.size())
            .WithContext(shown));
  }
  return record;
}

}  // namespace

Result<ImageRecord> ReadRecord(const io::Dir& disk, const ImageKey& key,
                               bool with_chunks) {
  const std::string path = RecordFile(key);
  const std::string shown = disk.path() + "/" + path;
  BIM_ASSIGN_OR_RETURN(Opened opened, OpenEnvelope(disk, path, kRecordMagic,
                                                   kMaxTable, with_chunks));
  BIM_ASSIGN_OR_RETURN(ImageRecord record,
                       ParseRecord(opened, shown, with_chunks));
  if (record.key != key) {
    return DataLossError(shown + " is the record of image '" + record.key.name +
                         "' with uuid '" + record.key.uuid + "'");
  }
  record.key = key;
  return record;
}

Result<ImageRecord> DecodeManifest(std::string text) {
  const std::string shown = "the manifest";
  if (text.size() > kMaxManifest) {
    return DataLossError("the manifest has " + std::to_string(text.size()) +
                         " bytes, at most " + std::to_string(kMaxManifest) +
                         " are expected");
  }
  auto opened = ParseEnvelope(std::move(text), shown, kManifestMagic, true);
  // A record or a journal in its place is no manifest either.
  if (opened.status().code() == base::Code::kNotFound) {
    return DataLossError(opened.status().message());
  }
  if (!opened.ok()) return opened.status();
  BIM_ASSIGN_OR_RETURN(ImageRecord record, ParseRecord(*opened, shown, true));
  if (record.stamp.size == 0 || record.stamp.size % 512 != 0 ||
      record.stamp.size > uint64_t{INT64_MAX}) {
    return DataLossError("the manifest's size " +
                         std::to_string(record.stamp.size) + " is no image's");
  }
  if (record.chunk_count == 0 && !opened->rest.empty()) {
    return DataLossError("the manifest says that it has no chunks, but " +
                         std::to_string(opened->rest.size()) +
                         " bytes follow its header");
  }
  // What is only of a disk is no peer's to say.
  record.stamp = {.size = record.stamp.size};
  record.sha512_pending = false;
  record.origin.clear();
  record.verified_ns = 0;
  return record;
}

std::string EncodeJournalHeader(const JournalHeader& header) {
  return Envelope(kJournalMagic, Dump(json{{"name", header.key.name},
                                           {"uuid", header.key.uuid},
                                           {"size", header.size},
                                           {"chunkSize", header.chunk_size},
                                           {"validator", header.validator},
                                           {"inode", header.inode}}));
}

// index (4), zero mark (4), digest (32), first 8 bytes of the SHA-256 of the
// 40 before: a torn entry is told from a whole one.
std::string EncodeJournalEntry(uint32_t index, const Chunk& chunk) {
  std::string entry;
  StoreLittle(entry, index, 4);
  StoreLittle(entry, chunk.zero ? 1 : 0, 4);
  entry.append(reinterpret_cast<const char*>(chunk.sha256.data()), 32);
  const Digest check = hash::HashOf(DigestAlgorithm::kSha256, Bytes(entry));
  entry.append(reinterpret_cast<const char*>(check.bytes().data()), 8);
  return entry;
}

bool HasJournal(const io::Dir& disk, const ImageKey& key) {
  return OpenEnvelope(disk, RecordFile(key), kJournalMagic, 0, false).ok();
}

Result<Journal> ReadJournal(const io::Dir& disk, const ImageKey& key) {
  const std::string path = RecordFile(key);
  BIM_ASSIGN_OR_RETURN(Opened opened, OpenEnvelope(disk, path, kJournalMagic,
                                                   kMaxJournal, true));
  Journal journal;
  JournalHeader& header = journal.header;
  header.key = {Value<std::string>(opened.header, "name", ""),
                Value<std::string>(opened.header, "uuid", "")};
  header.size = Value<uint64_t>(opened.header, "size", 0);
  header.chunk_size = Value<uint64_t>(opened.header, "chunkSize", 0);
  header.validator = Value<std::string>(opened.header, "validator", "");
  header.inode = Value<uint64_t>(opened.header, "inode", 0);
  if (header.key != key || header.size == 0 || header.chunk_size == 0 ||
      // Not only ChunkSizeFor: a reference brings its own.
      !CheckChunks(header.size, header.chunk_size,
                   ChunkCount(header.size, header.chunk_size))
           .ok()) {
    return DataLossError(disk.path() + "/" + path +
                         " is not the journal of this image");
  }
  header.key = key;
  journal.chunks.resize(ChunkCount(header.size, header.chunk_size));
  std::string_view rest = opened.rest;
  for (; rest.size() >= kEntrySize; rest.remove_prefix(kEntrySize)) {
    const uint64_t index = LoadLittle(rest.data(), 4);
    Chunk chunk;
    chunk.zero = LoadLittle(rest.data() + 4, 4) == 1;
    std::memcpy(chunk.sha256.data(), rest.data() + 8, 32);
    if (index >= journal.chunks.size() ||
        EncodeJournalEntry(static_cast<uint32_t>(index), chunk) !=
            rest.substr(0, kEntrySize)) {
      break;
    }
    journal.chunks[index] = chunk;
  }
  return journal;
}

Result<ImageKey> ReadOwnerOfRecord(const io::Dir& disk, const ImageKey& key) {
  for (const char* magic : {kRecordMagic, kJournalMagic}) {
    const auto opened = OpenEnvelope(disk, RecordFile(key), magic, 0, false);
    if (!opened.ok()) continue;
    return ImageKey{Value<std::string>(opened->header, "name", ""),
                    Value<std::string>(opened->header, "uuid", "")};
  }
  return base::NotFoundError("no readable " + RecordFile(key));
}

std::string EncodeConfig(const LonghornConfig& config) {
  // Longhorn's key order.
  nlohmann::ordered_json object = {
      {"name", config.file_path},
      {"uuid", config.uuid},
      {"size", config.size},
      {"virtualSize", config.virtual_size},
      {"realSize", config.real_size},
      {"expectedChecksum", config.expected_checksum},
      {"currentChecksum", config.current_checksum},
      {"modificationTime", config.modification_time}};
  return Dump(object);
}

Result<LonghornConfig> ReadConfig(const io::Dir& disk, const ImageKey& key) {
  BIM_ASSIGN_OR_RETURN(std::string text,
                       disk.ReadFile(ConfigFile(key), kMaxConfig));
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) {
    return DataLossError(disk.path() + "/" + ConfigFile(key) +
                         " is no JSON object");
  }
  LonghornConfig config;
  config.file_path = Value<std::string>(object, "name", "");
  config.uuid = Value<std::string>(object, "uuid", "");
  config.size = Value<uint64_t>(object, "size", 0);
  config.virtual_size = Value<uint64_t>(object, "virtualSize", 0);
  config.real_size = Value<uint64_t>(object, "realSize", 0);
  config.expected_checksum = Value<std::string>(object, "expectedChecksum", "");
  config.current_checksum = Value<std::string>(object, "currentChecksum", "");
  config.modification_time = Value<std::string>(object, "modificationTime", "");
  return config;
}

std::string FormatModificationTime(int64_t mtime_ns) {
  int64_t seconds = mtime_ns / 1'000'000'000;
  int64_t nanoseconds = mtime_ns % 1'000'000'000;
  if (nanoseconds < 0) {
    nanoseconds += 1'000'000'000;
    --seconds;
  }
  const time_t time = seconds;
  struct tm utc = {};
  gmtime_r(&time, &utc);
  char buffer[64];
  size_t length =
      std::strftime(buffer, sizeof(buffer), "%Y-%m-%d %H:%M:%S", &utc);
  std::string out(buffer, length);
  if (nanoseconds != 0) {
    std::snprintf(buffer, sizeof(buffer), ".%09" PRId64, nanoseconds);
    std::string fraction = buffer;
    while (fraction.back() == '0') fraction.pop_back();
    out += fraction;
  }
  return out + " +0000 UTC";
}

}  // namespace bim::store
