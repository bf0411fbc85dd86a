# Compiler flags and the one-library-a-folder rule.

# faultline_flags(TARGET [FOREIGN]): the project's flags. FOREIGN: the target is loaded into processes that we don't build; they
# have no sanitizer runtime, so it is never built with one.
function(faultline_flags target)
  set_target_properties(${target} PROPERTIES C_STANDARD 17 C_STANDARD_REQUIRED ON C_EXTENSIONS ON)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -Wformat=2 -Wundef -Wpointer-arith -fvisibility=hidden -fstack-protector-strong)
  target_link_options(${target} PRIVATE -Wl,-z,relro,-z,now)
  if(FAULTLINE_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(FAULTLINE_SANITIZE AND NOT "FOREIGN" IN_LIST ARGN)
    # An assertion is a check like the sanitizer's own.
    target_compile_options(${target} PRIVATE -fsanitize=${FAULTLINE_SANITIZE} -fno-omit-frame-pointer
      -fno-sanitize-recover=all -UNDEBUG)
    target_link_options(${target} PRIVATE -fsanitize=${FAULTLINE_SANITIZE})
    if(FAULTLINE_FUZZ)
      target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
    endif()
    if(FAULTLINE_SANITIZE MATCHES "thread")
      target_compile_options(${target} PRIVATE "SHELL:-include ${PROJECT_SOURCE_DIR}/cmake/tsan.h")
    endif()
  else()
    # Needs an optimising build, and would hide calls from the sanitizers. Some distributions' gcc has a value of its own.
    target_compile_options(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2>)
  endif()
endfunction()

# faultline_library(NAME [LIBRARY...]): src/NAME/*.c as a static library that may use the named ones.
function(faultline_library name)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.c)
  add_library(${name} STATIC ${sources})
  set_target_properties(${name} PROPERTIES OUTPUT_NAME faultline-${name} POSITION_INDEPENDENT_CODE ON)
  faultline_flags(${name})
  target_link_libraries(${name} PUBLIC ${ARGN} Threads::Threads)
endfunction()
