#include "pkg/compress/encoder.h"

#include <zstd.h>

#include <algorithm>

namespace bim::compress {
namespace {

using base::Status;

constexpr int kMinLevel = 1;
constexpr int kMaxLevel = 19;

struct Free {
  void operator()(ZSTD_CCtx* context) const { ::ZSTD_freeCCtx(context); }
};

class ZstdFrame final : public ZstdEncoder {
 public:
  explicit ZstdFrame(int level)
      : context_(::ZSTD_createCCtx()), buffer_(::ZSTD_CStreamOutSize(), '\0') {
    if (context_ == nullptr) return;
    const auto set = [&](ZSTD_cParameter parameter, int value) {
      return !::ZSTD_isError(
          ::ZSTD_CCtx_setParameter(context_.get(), parameter, value));
    };
    ready_ =
        set(ZSTD_c_compressionLevel, std::clamp(level, kMinLevel, kMaxLevel)) &&
        set(ZSTD_c_checksumFlag, 1);
  }

  Status Feed(std::span<const std::byte> data, std::string& out) override {
    ZSTD_inBuffer from{data.data(), data.size(), 0};
    while (from.pos < from.size) {
      size_t left = 0;
      BIM_RETURN_IF_ERROR(Step(from, ZSTD_e_continue, out, left));
    }
    return base::OkStatus();
  }

  Status Finish(std::string& out) override {
    ZSTD_inBuffer none{nullptr, 0, 0};
    size_t left = 1;
    while (left > 0) {
      BIM_RETURN_IF_ERROR(Step(none, ZSTD_e_end, out, left));
    }
    return base::OkStatus();
  }

 private:
  // `left`: 0 when all that `how` asks for is in `out`.
  Status Step(ZSTD_inBuffer& from, ZSTD_EndDirective how, std::string& out,
              size_t& left) {
    if (!ready_) {
      return base::ResourceExhaustedError("there is no memory to compress");
    }
    ZSTD_outBuffer to{buffer_.data(), buffer_.size(), 0};
    left = ::ZSTD_compressStream2(context_.get(), &to, &from, how);
    if (::ZSTD_isError(left)) {
      return base::InternalError(std::string("cannot compress: ") +
                                 ::ZSTD_getErrorName(left));
    }
    out.append(buffer_.data(), to.pos);
    return base::OkStatus();
  }

  std::unique_ptr<ZSTD_CCtx, Free> context_;
  std::string buffer_;
  bool ready_ = false;
};

}  // namespace

std::string CompressZstd(std::span<const std::byte> data, int level) {
  if (data.size() < 2) return "";
  // No room for a result that is not smaller: libzstd then stops early.
  const size_t room = data.size() - 1;
  const auto buffer = std::make_unique_for_overwrite<char[]>(room);
  const size_t size =
      ::ZSTD_compress(buffer.get(), room, data.data(), data.size(),
                      std::clamp(level, kMinLevel, kMaxLevel));
  if (::ZSTD_isError(size)) return "";
  return std::string(buffer.get(), size);
}

std::unique_ptr<ZstdEncoder> ZstdEncoder::Make(int level) {
  return std::make_unique<ZstdFrame>(level);
}

}  // namespace bim::compress
